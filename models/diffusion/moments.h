// The exact output of a sampler in a world where every coordinate of the data is N(mean, std^2): there every step is affine in the state
// and in its noises, so the state is carried as a mean and its weights on independent unit noises, in double, through the very code
// that samples images (sampler_core.h). No sampling error: a study tool, and the oracle of the tests.
#pragma once

#include <vector>

#include "models/diffusion/sampler.h"

namespace rz::models::diffusion {

// mean + sum_k loadings[k] xi_k, the xi independent with mean 0 and variance 1.
struct Affine {
  double mean = 0;
  std::vector<double> loadings;
  double variance() const;
};

Affine scaled(double a, const Affine& x);
Affine combine(double a, const Affine& x, double b, const Affine& y);
Affine combine(double a, const Affine& x, double b, const Affine& y, double c, const Affine& z);
inline Affine times(double factor, const Affine& x) { return scaled(factor, x); }
// Root mean square of z over that of y: what the ratio of norms tends to in high dimension.
double rms_ratio(const Affine& z, const Affine& y);
// rz::Error: this world has no network that learns a variance.
double learned_std(const Affine& v, double smallest, double largest);

struct GaussianWorld {
  double mean = 0;
  double std = 1;
};

struct Moments {
  double mean = 0;
  double std = 0;
};

// Mean and standard deviation of the state after each step, the last one the sampler's output. ConfigErrors as `sample`.
std::vector<Moments> sampler_moments(const GaussianWorld& world, const Path& path, const Grid& grid, const SamplerConfig& config);

}  // namespace rz::models::diffusion
