#include "models/diffusion/moments.h"

#include <algorithm>
#include <cmath>

#include "models/diffusion/sampler_core.h"
#include "runtime/core/error.h"

namespace rz::models::diffusion {

double Affine::variance() const {
  double sum = 0;
  for (const double c : loadings) sum += c * c;
  return sum;
}

Affine scaled(double a, const Affine& x) { return combine(a, x, 0, {}); }

Affine combine(double a, const Affine& x, double b, const Affine& y) {
  Affine out{a * x.mean + b * y.mean, std::vector<double>(std::max(x.loadings.size(), y.loadings.size()), 0.0)};
  for (size_t k = 0; k < x.loadings.size(); ++k) out.loadings[k] += a * x.loadings[k];
  for (size_t k = 0; k < y.loadings.size(); ++k) out.loadings[k] += b * y.loadings[k];
  return out;
}

Affine combine(double a, const Affine& x, double b, const Affine& y, double c, const Affine& z) {
  return combine(1, combine(a, x, b, y), c, z);
}

double rms_ratio(const Affine& z, const Affine& y) {
  return std::sqrt((z.mean * z.mean + z.variance()) / (y.mean * y.mean + y.variance()));
}

double learned_std(const Affine&, double, double) { throw Error("a Gaussian world has no network that learns a variance"); }

namespace {

struct MomentWorld {
  using State = Affine;
  const GaussianWorld& gaussian;
  const Path& path;
  size_t noises = 1;  // xi_0 is the state itself, after settle()

  Prediction<Affine> predict(const Affine& x, double t) const {
    const Coef c = path.at(t);
    const double gain = gaussian_gain(c, gaussian.std);
    Affine x0 = scaled(gain, x);
    x0.mean += gaussian.mean * (1 - gain * c.a);
    return {std::move(x0), {}, {}};
  }

  Affine noise(const Affine&, uint64_t) {
    Affine z;
    z.loadings.assign(++noises, 0.0);
    z.loadings.back() = 1;
    return z;
  }

  // Only the variance matters from here on: one unit noise carries it.
  Affine settle(const Affine& x) {
    noises = 1;
    return {x.mean, {std::sqrt(x.variance())}};
  }
};

}  // namespace

std::vector<Moments> sampler_moments(const GaussianWorld& world, const Path& path, const Grid& grid, const SamplerConfig& config) {
  RZ_CONFIG_CHECK(std::isfinite(world.mean) && world.std >= 0 && std::isfinite(world.std),
                  "a Gaussian world needs a finite mean and a standard deviation of at least 0, not {} and {}", world.mean, world.std);
  RZ_CONFIG_CHECK(config.variance != Variance::learned,
                  "a Gaussian world has no network that learns a variance; use fixed_small or fixed_large");
  check_sampler(config, path, grid);
  const bool uniform = config.start_low < config.start_high;
  const double width = config.start_high - config.start_low;
  Affine start{uniform ? config.start_low + width / 2 : 0, {uniform ? width / std::sqrt(12.0) : path.prior_std(grid.front())}};
  std::vector<Moments> out;
  const StepHook<Affine> hook = [&](const StepView<Affine>& view) { out.push_back({view.x.mean, std::sqrt(view.x.variance())}); };
  MomentWorld moments{world, path};
  const Affine end = SamplerLoop<MomentWorld>(moments, path, grid, config, hook).run(std::move(start));
  out.back() = {end.mean, std::sqrt(end.variance())};
  return out;
}

}  // namespace rz::models::diffusion
