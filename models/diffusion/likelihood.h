// Probability-flow likelihood (Song et al. 2021, section 4.3; Chen et al. 2018): a deterministic map takes data to noise, and the change
// of variables gives the density of the model that its sampler follows.
//
// In y = x / a over l = ln sigma the flow is dy/dl = y - D, on every path; log p(y_min) = log p(y_max) + integral of div(y - D) dl, from
// the path's smallest noise level to its largest, with y_max ~ N(0, (prior_std / a)^2).
#pragma once

#include <vector>

#include "models/diffusion/denoiser.h"
#include "models/diffusion/sampler.h"

namespace rz::models::diffusion {

// How the divergence is taken: one vector-Jacobian product per dimension, or with random signs (Hutchinson's estimate, unbiased; the
// same signs along a whole trajectory).
enum class Probe : uint8_t { exact, rademacher };

struct LikelihoodConfig {
  int64_t steps = 50;           // even in ln sigma
  Method method = Method::rk4;  // euler, heun, midpoint or rk4
  Probe probe = Probe::rademacher;
  int64_t probes = 1;    // averaged
  double sigma_min = 0;  // 0: the path's at t_min, or 0.002 where t_min is 0
  double sigma_max = 0;  // 0: the path's at t = 1, or 80 where that is infinite
};

// log p(x0) in nats of each sample of x0 [B, ..], which stands for data at the smallest noise level. The denoiser must be recorded for
// backward (networks and GaussianDenoiser are). Probes are keyed by (seed, global sample index).
std::vector<double> log_likelihood(const Denoiser& denoiser, const Path& path, const Tensor& x0, const Conditioning& conditioning,
                                   const LikelihoodConfig& config, const SampleRows& rows);

// Data with 256 levels -1, -1 + 2/255, .., 1, spread evenly over their bins: what a density is measured on.
Tensor dequantize(const Tensor& x0, const SampleRows& rows);

// A log-density per sample of `dimensions` dequantized numbers as bits per dimension of the levels.
double bits_per_dimension(double log_p, int64_t dimensions);

}  // namespace rz::models::diffusion
