// Samplers: from noise to data along a grid of times. The loop index lives here and nowhere else; the update rules are templates over
// the state (sampler_core.h), so that images and exact moments (moments.h) go through the same code.
//
// There is one first-order step, from (a, s) to (a', s') with e = (x - a D) / s:
//   x' = a' D + sqrt(s'^2 - g^2) e + n z,    g^2 = eta^2 (s'/s)^2 (s^2 - (a/a')^2 s'^2),    n = g unless `variance` says otherwise
// eta 0 is DDIM, Euler in EDM's coordinates and Euler on a rectified flow; eta 1 is DDPM's ancestral step. No noise enters a step to
// t = 0. The random numbers of a sample are keyed by (seed, step, global sample index): samples depend neither on ranks nor on batches.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>

#include "models/diffusion/denoiser.h"
#include "models/diffusion/grid.h"

namespace rz::models::diffusion {

enum class Method : uint8_t {
  euler,              // the first-order step, with noise where eta > 0
  heun,               // deterministic, order 2; Karras et al. 2022, algorithm 1
  midpoint,           // deterministic, order 2
  rk4,                // deterministic, order 4
  euler_maruyama,     // of the reverse SDE; Song et al. 2021, equation 6
  reverse_diffusion,  // Song et al. 2021, appendix E; with a corrector the predictor-corrector sampler, algorithms 2 and 3
  annealed_langevin,  // Song & Ermon 2019, algorithm 1
};
const char* name(Method method);
Method parse_method(std::string_view text);
// Whether it follows the probability flow (euler: where eta is 0) instead of a stochastic equation.
bool is_deterministic(Method method);

// In which coordinates slopes of higher order are averaged: (x / a, sigma) as in EDM, or (x, t) as for flows.
enum class Coordinates : uint8_t { sigma, time };
const char* name(Coordinates coordinates);
Coordinates parse_coordinates(std::string_view text);

// The noise of a step with eta = 1: the posterior's variance (g^2), the forward step's s^2 - (a/a')^2 s'^2, or what the network says,
// between the two.
enum class Variance : uint8_t { fixed_small, fixed_large, learned };
const char* name(Variance variance);
Variance parse_variance(std::string_view text);

// Stochastic churn before a deterministic step, where low <= sigma <= high: sigma grows by gamma = min(amount / N, sqrt(2) - 1), with
// noise of standard deviation `noise`. Karras et al. 2022, algorithm 2. On a path with a largest sigma it stops there.
struct Churn {
  double amount = 0;
  double low = 0;
  double high = std::numeric_limits<double>::infinity();
  double noise = 1;
};

// Langevin steps at each time before the predictor: step = 2 (a/a')^2 (snr |z| / |score|)^2. Song et al. 2021, algorithms 4 and 5, with
// the norms of each sample instead of the batch's means, so that a sample does not depend on its neighbours.
struct Corrector {
  int64_t steps = 0;
  double snr = 0.16;
};

// Annealed Langevin dynamics: `steps` steps of size `step` (s / s_last)^2 at each time of the grid but 0.
struct Langevin {
  int64_t steps = 100;
  double step = 2e-5;
  bool denoise = false;  // end with D(x)
};

struct SamplerConfig {
  Method method = Method::euler;
  Coordinates coordinates = Coordinates::sigma;
  double eta = 0;
  Variance variance = Variance::fixed_small;
  Churn churn;
  Corrector corrector;
  Langevin langevin;
  // What sampling starts from: normal noise of the path's prior_std, or, where low < high, uniform numbers in [low, high).
  double start_low = 0, start_high = 0;
};

// ConfigError where sampler, path and grid do not fit, saying what would.
void check_sampler(const SamplerConfig& config, const Path& path, const Grid& grid);

// Network evaluations that `sample` makes, without guidance.
int64_t evaluations(const SamplerConfig& config, const Path& path, const Grid& grid);

// After step `step` of `steps`: the state at time t and the data that the step's denoiser saw.
template <class X>
struct StepView {
  int64_t step = 0;
  int64_t steps = 0;
  double t = 0;
  const X& x;
  const X& x0;
};
template <class X>
using StepHook = std::function<void(const StepView<X>&)>;

// Whose random numbers: sample row b is global sample first_sample + b of `seed`.
struct SampleRows {
  uint64_t seed = 0;
  uint64_t first_sample = 0;
};

// Standard normal numbers [B, ..], keyed by (seed, stream, draw, sample).
Tensor keyed_normal(const Shape& shape, const SampleRows& rows, const char* stream, uint64_t draw, DType dtype = DType::f32);

// The state at grid.front() from which `sample` goes on.
Tensor start_state(const SamplerConfig& config, const Path& path, const Grid& grid, const Shape& shape, const SampleRows& rows,
                   DType dtype = DType::f32);

// Between two starts, sample by sample along a great circle, which keeps their norm: part 0 is x, 1 is y. For interpolating samples of a
// deterministic sampler (Song, Meng, Ermon 2021, appendix D.5).
Tensor interpolate_starts(const Tensor& x, const Tensor& y, double part);

// Moves x [B, ..] from grid.front() to grid.back(). Nothing is recorded for backward.
Tensor sample(const Denoiser& denoiser, const Path& path, const Grid& grid, const SamplerConfig& config, Tensor x,
              const Conditioning& conditioning, const SampleRows& rows, const StepHook<Tensor>& hook = {});

}  // namespace rz::models::diffusion
