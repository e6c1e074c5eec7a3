// The variational bound on -log p(x0) of a discrete chain, in bits per dimension, and its parts. Ho et al. 2020, equation 5; Nichol &
// Dhariwal 2021. Data in [-1, 1] with 256 levels.
//
//   prior:    KL(q(x_T | x0) || N(0, I))
//   t > 0:    KL(q(x_next | x_t, x0) || p(x_next | x_t)), p = N(posterior mean at D(x_t), variance)
//   last:     -log p(x0 | x_1), a Gaussian discretized to the 256 levels
#pragma once

#include <vector>

#include "models/diffusion/denoiser.h"
#include "models/diffusion/sampler.h"

namespace rz::models::diffusion {

// KL(N(m1, e^v1) || N(m2, e^v2)) in nats.
double normal_kl(double mean1, double log_variance1, double mean2, double log_variance2);

// log-probability (nats) of each element of x, a level of 256 in [-1, 1], under N(mean, e^(2 log_std)) cut into bins of width 2/255; the
// end bins are open. The normal's distribution function is tanh's approximation; probabilities below 1e-12 count as that.
Tensor discretized_gaussian_log_likelihood(const Tensor& x, const Tensor& mean, const Tensor& log_std);

// Log-variances of the step from t to `next`: the posterior's, and the forward step's. Where the posterior has none, because `next` is
// data, the posterior of the step before, from `before` to t, stands in (Ho et al.: "log-variance clipped").
struct LogVariances {
  double smallest = 0;
  double largest = 0;
};
LogVariances log_variances(const Path& path, double before, double t, double next);

// The bound's term at time t[b] = (k + 1) / T of each sample, for the step to k / T: [B] bits per dimension, recorded for backward.
// `v` [B, ..] interpolates log-variances from the posterior's (-1) to the forward step's (1).
Tensor variational_terms(const Path& path, const std::vector<double>& t, const Tensor& x0, const Tensor& denoised, const Tensor& v);

struct Bound {
  std::vector<double> total;  // of each sample, bits per dimension
  std::vector<double> prior;
  std::vector<std::vector<double>> terms;  // terms[i][b]: step i of the grid; the last is the decoder
};

// The whole bound along `grid` (which ends at 0), with one noise per step and sample, keyed as in training: N evaluations.
// Variance::learned needs a denoiser that predicts variances. Clamp the denoiser for the published numbers.
Bound variational_bound(const Denoiser& denoiser, const Path& path, const Grid& grid, Variance variance, const Tensor& x0,
                        const Conditioning& conditioning, const SampleRows& rows);

}  // namespace rz::models::diffusion
