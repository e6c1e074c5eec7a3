#include "models/diffusion/variational.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "models/diffusion/state.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/rank_context.h"
#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

namespace {

// A step of each sample of a batch.
struct Steps {
  std::vector<double> x0_factor;     // of the posterior's mean
  std::vector<double> log_variance;  // of the posterior
  std::vector<double> last;          // 1: the decoder's step, 0: a KL
};

// [B] bits per dimension; `log_p` (log-variances of the reverse step) broadcasts to x0.
Tensor terms(const Steps& steps, const Tensor& x0, const Tensor& denoised, const Tensor& log_p) {
  const auto column = [&](const std::vector<double>& values) { return per_sample(values, x0.shape(), x0.dtype()); };
  const int64_t B = x0.size(0);
  const Tensor gap = ops::mul(column(steps.x0_factor), ops::sub(x0, denoised));
  const Tensor log_ratio = ops::sub(column(steps.log_variance), log_p);  // posterior over reverse step
  const Tensor squares = ops::mul(ops::square(gap), ops::exp(ops::neg(log_p)));
  const Tensor kl = ops::scale(ops::add(ops::sub(ops::exp(log_ratio), ops::shift(log_ratio, 1)), squares), 0.5);
  Tensor nats_B = mean_per_sample(kl);
  // A dry run plans for the steps that draw the first time: they hold most.
  if (dry_run() || std::find(steps.last.begin(), steps.last.end(), 1.0) != steps.last.end()) {
    std::vector<double> others;
    for (const double last : steps.last) others.push_back(1 - last);
    // The posterior's mean is the denoised x0 there: its factor is 1, that of x_t is 0.
    const Tensor log_std = ops::broadcast_to(ops::scale(log_p, 0.5), x0.shape());
    const Tensor decoder_B = ops::neg(mean_per_sample(discretized_gaussian_log_likelihood(x0, denoised, log_std)));
    nats_B = ops::add(ops::mul(per_sample(others, {B}, x0.dtype()), nats_B), ops::mul(per_sample(steps.last, {B}, x0.dtype()), decoder_B));
  }
  return ops::scale(nats_B, 1 / std::numbers::ln2);
}

// log variance from the smallest (v = -1) to the largest (v = 1), limits per sample.
Tensor interpolate(const Tensor& v, const std::vector<LogVariances>& limits) {
  std::vector<double> half_sum, half_gap;
  for (const LogVariances& l : limits) {
    half_sum.push_back(0.5 * (l.largest + l.smallest));
    half_gap.push_back(0.5 * (l.largest - l.smallest));
  }
  return ops::add(ops::mul(v, per_sample(half_gap, v.shape(), v.dtype())), per_sample(half_sum, v.shape(), v.dtype()));
}

}  // namespace

double normal_kl(double mean1, double log_variance1, double mean2, double log_variance2) {
  const double d = mean1 - mean2;
  return 0.5 * (log_variance2 - log_variance1 - 1 + std::exp(log_variance1 - log_variance2) + d * d * std::exp(-log_variance2));
}

Tensor discretized_gaussian_log_likelihood(const Tensor& x, const Tensor& mean, const Tensor& log_std) {
  const auto cdf = [](const Tensor& z) {
    // (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2
    const Tensor cubic = ops::mul(z, ops::shift(ops::scale(ops::square(z), 0.044715), 1));
    return ops::scale(ops::shift(ops::tanh(ops::scale(cubic, std::sqrt(2 / std::numbers::pi))), 1), 0.5);
  };
  const auto log_at_least = [](const Tensor& p) { return ops::log(ops::clamp(p, 1e-12, 2)); };
  const Tensor centered = ops::sub(x, mean);
  const Tensor inverse_std = ops::exp(ops::neg(log_std));
  const Tensor below = cdf(ops::mul(inverse_std, ops::shift(centered, -1.0 / 255)));
  const Tensor above = cdf(ops::mul(inverse_std, ops::shift(centered, 1.0 / 255)));
  const auto edge = [&](double value) { return Tensor::full({}, value, x.dtype(), "edge"); };
  const Tensor inner_or_last =
      ops::where(ops::gt(x, edge(0.999)), log_at_least(ops::shift(ops::neg(below), 1)), log_at_least(ops::sub(above, below)));
  return ops::where(ops::lt(x, edge(-0.999)), log_at_least(above), inner_or_last);
}

LogVariances log_variances(const Path& path, double before, double t, double next) {
  const Coef from = path.at(t), to = path.at(next);
  const Posterior q = to.s > 0 ? posterior(from, to) : posterior(path.at(before), from);
  return {std::log(q.variance), std::log(transition(to, from).variance)};
}

Tensor variational_terms(const Path& path, const std::vector<double>& t, const Tensor& x0, const Tensor& denoised, const Tensor& v) {
  RZ_CHECK(path.steps() > 1, "path {} has no discrete times", path.name());
  RZ_CHECK(denoised.shape() == x0.shape() && v.shape() == x0.shape() && static_cast<int64_t>(t.size()) == x0.size(0),
           "variational terms of {} times for x0 {}, denoised {}, v {}", t.size(), x0.str(), denoised.str(), v.str());
  const double dt = 1 / static_cast<double>(path.steps());
  Steps steps;
  std::vector<LogVariances> limits;
  for (const double at : t) {
    const bool last = at < 1.5 * dt;
    const double next = last ? 0 : at - dt;
    limits.push_back(log_variances(path, at + dt, at, next));
    steps.x0_factor.push_back(posterior(path.at(at), path.at(next)).x0_factor);
    steps.log_variance.push_back(limits.back().smallest);
    steps.last.push_back(last ? 1 : 0);
  }
  return terms(steps, x0, denoised, interpolate(v, limits));
}

Bound variational_bound(const Denoiser& denoiser, const Path& path, const Grid& grid, Variance variance, const Tensor& x0,
                        const Conditioning& conditioning, const SampleRows& rows) {
  RZ_CONFIG_CHECK(grid.size() >= 3 && grid.back() == 0,
                  "a variational bound needs a grid of at least two steps that ends at 0, not {} times", grid.size());
  const autograd::NoGrad no_grad;
  const auto B = static_cast<size_t>(x0.size(0));
  const auto same = [&](double value) { return std::vector<double>(B, value); };
  Bound bound;
  const Coef end = path.at(grid.front());
  const double prior = path.prior_std(grid.front());
  const auto squares = mean_per_sample(ops::square(x0)).to_vector<double>();
  for (const double square : squares) {
    const double nats = 0.5 * ((end.s * end.s + end.a * end.a * square) / (prior * prior) - 1 - 2 * std::log(end.s / prior));
    bound.prior.push_back(nats / std::numbers::ln2);
  }
  bound.total = bound.prior;
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    const double t = grid[i], next = grid[i + 1];
    const Coef c = path.at(t);
    const Tensor eps = keyed_normal(x0.shape(), rows, "diffusion:bound", i, x0.dtype());
    const Prediction<Tensor> p = denoiser.predict(combine(c.a, x0, c.s, eps), t, conditioning);
    const LogVariances limits = log_variances(path, i == 0 ? t : grid[i - 1], t, next);
    Tensor log_p;
    if (variance == Variance::learned) {
      RZ_CONFIG_CHECK(p.variance.has_value(), "variance learned needs a network that was trained with a learned range of variances");
      log_p = interpolate(*p.variance, std::vector<LogVariances>(B, limits));
    } else {
      const bool small = variance == Variance::fixed_small || next == 0;
      log_p = Tensor::full({}, small ? limits.smallest : limits.largest, x0.dtype(), "log-variance");
    }
    const Steps steps{same(posterior(c, path.at(next)).x0_factor), same(limits.smallest), same(next == 0 ? 1 : 0)};
    bound.terms.push_back(terms(steps, x0, p.x0, log_p).to_vector<double>());
    for (size_t b = 0; b < B; ++b) bound.total[b] += bound.terms.back()[b];
  }
  return bound;
}

}  // namespace rz::models::diffusion
