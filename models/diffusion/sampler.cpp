#include "models/diffusion/sampler.h"

#include <algorithm>
#include <cmath>

#include "models/diffusion/names.h"
#include "models/diffusion/sampler_core.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

namespace {

constexpr Names<Method, 7> kMethods = {{{Method::euler, "euler"},
                                        {Method::heun, "heun"},
                                        {Method::midpoint, "midpoint"},
                                        {Method::rk4, "rk4"},
                                        {Method::euler_maruyama, "euler_maruyama"},
                                        {Method::reverse_diffusion, "reverse_diffusion"},
                                        {Method::annealed_langevin, "annealed_langevin"}}};
constexpr Names<Coordinates, 2> kCoordinates = {{{Coordinates::sigma, "sigma"}, {Coordinates::time, "time"}}};
constexpr Names<Variance, 3> kVariances = {
    {{Variance::fixed_small, "fixed_small"}, {Variance::fixed_large, "fixed_large"}, {Variance::learned, "learned"}}};

struct TensorWorld {
  using State = Tensor;
  const Denoiser& denoiser;
  const Conditioning& conditioning;
  SampleRows rows;

  Prediction<Tensor> predict(const Tensor& x, double t) const { return denoiser.predict(x, t, conditioning); }
  Tensor noise(const Tensor& like, uint64_t draw) const {
    return keyed_normal(like.shape(), rows, "diffusion:sampler", draw, like.dtype());
  }
  Tensor settle(Tensor x) const { return x; }
};

void check_langevin(const SamplerConfig& config, const Path& path, const Grid& grid) {
  RZ_CONFIG_CHECK(config.langevin.steps >= 1 && config.langevin.step > 0,
                  "annealed Langevin needs at least one step per level, of positive size, not {} of {}", config.langevin.steps,
                  config.langevin.step);
  for (size_t i = 0; i + 1 < grid.size(); ++i)
    RZ_CONFIG_CHECK(path.at(grid[i]).a == 1,
                    "annealed Langevin keeps the scale of its state, and path {} has a = {} at t = {}; use ncsn, ve_sde or edm, or convert",
                    path.name(), path.at(grid[i]).a, grid[i]);
}

}  // namespace

const char* name(Method method) { return name_in(kMethods, method); }
Method parse_method(std::string_view text) { return parse_in(kMethods, "sampling method", text); }
bool is_deterministic(Method method) {
  return method == Method::euler || method == Method::heun || method == Method::midpoint || method == Method::rk4;
}
const char* name(Coordinates coordinates) { return name_in(kCoordinates, coordinates); }
Coordinates parse_coordinates(std::string_view text) { return parse_in(kCoordinates, "coordinates", text); }
const char* name(Variance variance) { return name_in(kVariances, variance); }
Variance parse_variance(std::string_view text) { return parse_in(kVariances, "variance", text); }

void check_sampler(const SamplerConfig& config, const Path& path, const Grid& grid) {
  RZ_CONFIG_CHECK(grid.size() >= 2, "a sampler needs a grid of at least two times, not {}", grid.size());
  for (size_t i = 0; i < grid.size(); ++i)
    RZ_CONFIG_CHECK(std::isfinite(grid[i]) && grid[i] >= 0 && (i == 0 || grid[i] <= grid[i - 1]) && (i + 1 == grid.size() || grid[i] > 0),
                    "time {} of the grid is {}: times descend, and only the last may be 0", i, grid[i]);
  const bool deterministic = is_deterministic(config.method);
  const char* method = name(config.method);
  RZ_CONFIG_CHECK(config.eta >= 0 && std::isfinite(config.eta), "eta {} must not be negative", config.eta);
  RZ_CONFIG_CHECK(config.eta == 0 || config.method == Method::euler, "method {} takes no eta (it is {}); eta belongs to euler", method,
                  config.eta);
  RZ_CONFIG_CHECK(config.variance == Variance::fixed_small || (config.method == Method::euler && config.eta == 1),
                  "variance {} belongs to ancestral sampling: method euler with eta 1, not {} with eta {}", name(config.variance), method,
                  config.eta);
  RZ_CONFIG_CHECK(config.churn.amount >= 0 && config.churn.noise >= 0, "churn {} with noise {}: neither may be negative",
                  config.churn.amount, config.churn.noise);
  RZ_CONFIG_CHECK(config.churn.amount == 0 || (deterministic && config.eta == 0),
                  "churn belongs to deterministic steps, not to {} with eta {}", method, config.eta);
  RZ_CONFIG_CHECK(config.corrector.steps >= 0 && config.corrector.snr > 0,
                  "{} corrector steps with signal-to-noise ratio {}: give 0 or more, and a positive one", config.corrector.steps,
                  config.corrector.snr);
  RZ_CONFIG_CHECK(config.corrector.steps == 0 || (!deterministic && config.method != Method::annealed_langevin),
                  "a corrector belongs to euler_maruyama and reverse_diffusion, not to {}", method);
  if (config.method == Method::annealed_langevin) return check_langevin(config, path, grid);
  const bool in_sigma = deterministic && config.method != Method::euler && config.coordinates == Coordinates::sigma;
  RZ_CONFIG_CHECK(!in_sigma || path.at(grid.front()).a != 0,
                  "coordinates sigma need a finite sigma, and path {} has a = 0 at t = {}; use coordinates time, or start below it",
                  path.name(), grid.front());
  RZ_CONFIG_CHECK(deterministic || path.at(grid.front()).a != 0,
                  "method {} follows a diffusion equation, and path {} has none at t = {}, where a = 0; use euler, heun, midpoint or rk4, "
                  "start below it, or "
                  "convert to path vp",
                  method, path.name(), grid.front());
  if (config.churn.amount > 0)
    RZ_CONFIG_CHECK(path.at(grid.front()).a != 0, "churn needs a finite sigma, and path {} has a = 0 at t = {}; start below it",
                    path.name(), grid.front());
  if (config.eta <= 1) return;
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    const Coef to = path.at(grid[i + 1]);
    const double g2 = config.eta * config.eta * posterior(path.at(grid[i]), to).variance;
    RZ_CONFIG_CHECK(g2 <= to.s * to.s * (1 + 1e-12),
                    "eta {} asks for more noise than the step from t = {} to {} can hold; give at most {:.6g}", config.eta, grid[i],
                    grid[i + 1], config.eta * to.s / std::sqrt(g2));
  }
}

int64_t evaluations(const SamplerConfig& config, const Path& path, const Grid& grid) {
  int64_t count = 0;
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    if (config.method == Method::annealed_langevin)
      count += config.langevin.steps;
    else if (is_deterministic(config.method))
      count += static_cast<int64_t>(tableau(config.method, path.at(grid[i + 1]).s == 0).nodes.size());
    else
      count += 1 + config.corrector.steps;
  }
  return count + (config.method == Method::annealed_langevin && config.langevin.denoise ? 1 : 0);
}

Tensor keyed_normal(const Shape& shape, const SampleRows& rows, const char* stream, uint64_t draw, DType dtype) {
  Tensor out = Tensor::empty(shape, dtype, "noise");
  backend(out.device()).random->normal({rows.seed, stream, draw, rows.first_sample}, out);
  return out;
}

Tensor start_state(const SamplerConfig& config, const Path& path, const Grid& grid, const Shape& shape, const SampleRows& rows,
                   DType dtype) {
  RZ_CHECK(!grid.empty() && shape.rank() >= 2, "no start for a grid of {} times and states {}", grid.size(), shape.str());
  if (config.start_low >= config.start_high)
    return scaled(path.prior_std(grid.front()), keyed_normal(shape, rows, "diffusion:start", 0, dtype));
  std::vector<double> values;
  const int64_t per_sample = shape[0] == 0 ? 0 : shape.numel() / shape[0];
  for (int64_t b = 0; b < shape[0]; ++b) {
    const Random random(rows.seed, "diffusion:start", 0, rows.first_sample + static_cast<uint64_t>(b));
    for (int64_t i = 0; i < per_sample; ++i)
      values.push_back(config.start_low +
                       (config.start_high - config.start_low) * static_cast<double>(random.uniform(static_cast<uint64_t>(i))));
  }
  if (dtype == DType::f64) return Tensor::of<double>(shape, values, "start");
  return Tensor::of<float>(shape, std::vector<float>(values.begin(), values.end()), "start");
}

Tensor interpolate_starts(const Tensor& x, const Tensor& y, double part) {
  RZ_CHECK(x.shape() == y.shape() && x.dtype() == y.dtype(), "cannot interpolate between {} and {}", x.str(), y.str());
  const auto xx = mean_per_sample(ops::square(x)).to_vector<double>(), yy = mean_per_sample(ops::square(y)).to_vector<double>();
  const auto xy = mean_per_sample(ops::mul(x, y)).to_vector<double>();
  std::vector<double> of_x, of_y;
  for (size_t b = 0; b < xx.size(); ++b) {
    const double angle = std::acos(std::clamp(xy[b] / std::sqrt(xx[b] * yy[b]), -1.0, 1.0));
    const bool parallel = std::sin(angle) < 1e-6;
    of_x.push_back(parallel ? 1 - part : std::sin((1 - part) * angle) / std::sin(angle));
    of_y.push_back(parallel ? part : std::sin(part * angle) / std::sin(angle));
  }
  return ops::add(ops::mul(per_sample(of_x, x.shape(), x.dtype()), x), ops::mul(per_sample(of_y, y.shape(), y.dtype()), y));
}

Tensor sample(const Denoiser& denoiser, const Path& path, const Grid& grid, const SamplerConfig& config, Tensor x,
              const Conditioning& conditioning, const SampleRows& rows, const StepHook<Tensor>& hook) {
  const autograd::NoGrad no_grad;
  TensorWorld world{denoiser, conditioning, rows};
  return SamplerLoop<TensorWorld>(world, path, grid, config, hook).run(std::move(x));
}

}  // namespace rz::models::diffusion
