#include "models/diffusion/likelihood.h"

#include <cmath>
#include <numbers>

#include "models/diffusion/sampler_core.h"
#include "models/diffusion/state.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

namespace {

// Vectors to multiply the Jacobian with; the trace is the mean over them of factor v^T J v.
struct Probes {
  std::vector<Tensor> vectors;
  double factor = 1;
};

Tensor host_tensor(const Shape& shape, const std::vector<double>& values, DType dtype) {
  if (dtype == DType::f64) return Tensor::of<double>(shape, values, "probe");
  return Tensor::of<float>(shape, std::vector<float>(values.begin(), values.end()), "probe");
}

Probes make_probes(const LikelihoodConfig& config, const Tensor& x, const SampleRows& rows) {
  const int64_t B = x.size(0);
  const int64_t D = x.numel() / B;
  const int64_t count = config.probe == Probe::exact ? D : config.probes;
  Probes probes{{}, config.probe == Probe::exact ? static_cast<double>(D) : 1.0};
  for (int64_t k = 0; k < count; ++k) {
    std::vector<double> values;
    for (int64_t b = 0; b < B; ++b) {
      const Random random(rows.seed, "diffusion:probe", static_cast<uint64_t>(k), rows.first_sample + static_cast<uint64_t>(b));
      for (int64_t i = 0; i < D; ++i)
        values.push_back(config.probe == Probe::exact ? (i == k ? 1 : 0) : (random.bits(static_cast<uint64_t>(i)) >> 31) != 0 ? 1 : -1);
    }
    probes.vectors.push_back(host_tensor(x.shape(), values, x.dtype()));
  }
  return probes;
}

// dy/dl and its divergence, for each sample, at noise level sigma.
struct Slope {
  Tensor y;
  std::vector<double> divergence;
};

Slope slope(const Denoiser& denoiser, const Path& path, const Tensor& y, double sigma, const Conditioning& conditioning,
            const Probes& probes) {
  const double t = path.t_of_sigma(sigma);
  const double a = path.at(t).a;
  const int64_t D = y.numel() / y.size(0);
  autograd::GradMode recording(true);
  Tensor x = scaled(a, y).view_alias();
  autograd::set_requires_grad(x, true);
  const Tensor x0 = denoiser.predict(x, t, conditioning).x0;
  RZ_CHECK(autograd::needs_grad({x0}), "a likelihood needs a denoiser whose derivative with respect to x is recorded");
  Slope out{Tensor(), std::vector<double>(static_cast<size_t>(y.size(0)), static_cast<double>(D))};
  for (size_t k = 0; k < probes.vectors.size(); ++k) {
    const Tensor& v = probes.vectors[k];
    const Tensor product = autograd::grad({x0}, {x}, {v}, k + 1 < probes.vectors.size()).front();
    const autograd::NoGrad no_grad;
    const auto mean = mean_per_sample(ops::mul(v, product)).to_vector<double>();
    const double each = a * probes.factor * static_cast<double>(D) / static_cast<double>(probes.vectors.size());
    for (size_t b = 0; b < mean.size(); ++b) out.divergence[b] -= each * mean[b];
  }
  const autograd::NoGrad no_grad;
  out.y = ops::sub(y, ops::detach(x0));
  return out;
}

}  // namespace

std::vector<double> log_likelihood(const Denoiser& denoiser, const Path& path, const Tensor& x0, const Conditioning& conditioning,
                                   const LikelihoodConfig& config, const SampleRows& rows) {
  RZ_CONFIG_CHECK(
      is_deterministic(config.method) && config.steps >= 1 && config.probes >= 1,
      "a likelihood follows a deterministic flow: method euler, heun, midpoint or rk4 with at least one step and one probe, not {} "
      "with {} and {}",
      name(config.method), config.steps, config.probes);
  RZ_CHECK(x0.rank() >= 2 && x0.size(0) >= 1, "a likelihood needs samples, not {}", x0.str());
  const double most = path.at(1).sigma();
  const double high = config.sigma_max > 0 ? config.sigma_max : std::isfinite(most) ? most : 80;
  const double low = config.sigma_min > 0 ? config.sigma_min : path.t_min() > 0 ? path.at(path.t_min()).sigma() : 0.002;
  RZ_CONFIG_CHECK(low < high, "a likelihood between noise levels {} and {}: they must ascend", low, high);
  const Probes probes = make_probes(config, x0, rows);
  const Tableau method = tableau(config.method, false);
  const double h = std::log(high / low) / static_cast<double>(config.steps);
  std::vector<double> log_p(static_cast<size_t>(x0.size(0)), 0.0);
  Tensor y = x0;
  for (int64_t i = 0; i < config.steps; ++i) {
    std::vector<Slope> slopes;
    const auto advance = [&](const std::vector<double>& weights) {
      const autograd::NoGrad no_grad;
      Tensor out = y;
      for (size_t j = 0; j < weights.size(); ++j)
        if (weights[j] != 0) out = combine(1, out, h * weights[j], slopes[j].y);
      return out;
    };
    for (size_t k = 0; k < method.nodes.size(); ++k) {
      const double l = (static_cast<double>(i) + method.nodes[k]) * h;
      // The last level as given: an exponential of a logarithm may leave the path by a rounding.
      const double sigma = i + 1 == config.steps && method.nodes[k] == 1 ? high : low * std::exp(l);
      slopes.push_back(slope(denoiser, path, advance(method.stages[k]), sigma, conditioning, probes));
    }
    y = advance(method.weights);
    for (size_t j = 0; j < slopes.size(); ++j)
      for (size_t b = 0; b < log_p.size(); ++b) log_p[b] += h * method.weights[j] * slopes[j].divergence[b];
  }
  const double t_high = path.t_of_sigma(high);
  const double std = path.prior_std(t_high) / path.at(t_high).a;
  const auto D = static_cast<double>(x0.numel() / x0.size(0));
  const auto squares = mean_per_sample(ops::square(ops::detach(y))).to_vector<double>();
  for (size_t b = 0; b < log_p.size(); ++b) log_p[b] -= 0.5 * D * (squares[b] / (std * std) + std::log(2 * std::numbers::pi * std * std));
  return log_p;
}

Tensor dequantize(const Tensor& x0, const SampleRows& rows) {
  const int64_t B = x0.size(0);
  const int64_t D = B == 0 ? 0 : x0.numel() / B;
  std::vector<double> shift;
  for (int64_t b = 0; b < B; ++b) {
    const Random random(rows.seed, "diffusion:dequantize", 0, rows.first_sample + static_cast<uint64_t>(b));
    for (int64_t i = 0; i < D; ++i) shift.push_back((static_cast<double>(random.uniform(static_cast<uint64_t>(i))) - 0.5) * 2 / 255);
  }
  return ops::add(x0, host_tensor(x0.shape(), shift, x0.dtype()));
}

double bits_per_dimension(double log_p, int64_t dimensions) {
  return -log_p / (static_cast<double>(dimensions) * std::numbers::ln2) + std::log2(255.0 / 2);
}

}  // namespace rz::models::diffusion
