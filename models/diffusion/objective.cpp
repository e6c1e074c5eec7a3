#include "models/diffusion/objective.h"

#include <cmath>

#include "models/diffusion/state.h"
#include "models/diffusion/variational.h"
#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

namespace {

// The coefficients of a batch, one of each per sample.
struct Drawn {
  std::vector<double> t, weight, a, s, x0_factor, eps_factor, c_skip, c_out, c_in, c_noise;
};

Drawn draw(const Process& p, int64_t samples, const SampleKey& key) {
  Drawn d;
  for (int64_t b = 0; b < samples; ++b) {
    const TimeDraw time = p.times->draw({key.seed, key.step, key.first_sample + static_cast<uint64_t>(b)});
    const Coef c = p.path->at(time.t);
    const Mixture m = mixture(p.parametrization.target, c, p.parametrization.sigma_data);
    const Precond pre = precond(p.parametrization, *p.path, time.t);
    d.t.push_back(time.t);
    d.weight.push_back(time.weight);
    d.a.push_back(c.a);
    d.s.push_back(c.s);
    d.x0_factor.push_back(m.x0_factor);
    d.eps_factor.push_back(m.eps_factor);
    d.c_skip.push_back(pre.c_skip);
    d.c_out.push_back(pre.c_out);
    d.c_in.push_back(pre.c_in);
    d.c_noise.push_back(pre.c_noise);
  }
  return d;
}

}  // namespace

Objective::Objective(Process process, int channel_dim) : process_(std::move(process)), channel_dim_(channel_dim) {
  RZ_CHECK(process_.path && process_.times, "an objective needs a path and a distribution of times");
  RZ_CONFIG_CHECK(!process_.vlb || process_.path->steps() > 1,
                  "the variational term is a sum over discrete times, and path {} is continuous", process_.path->name());
}

LossResult Objective::loss(const Network& network, const Tensor& x0, const Conditioning& conditioning, const SampleKey& key, double scale,
                           const Tensor& noise) const {
  RZ_CHECK(x0.rank() >= 2 && (x0.dtype() == DType::f32 || x0.dtype() == DType::f64), "a batch is f32 [samples, ..], not {}", x0.str());
  const Shape& shape = x0.shape();
  const int64_t B = shape[0];
  const Drawn d = draw(process_, B, key);
  const Tensor eps = noise.defined() ? noise : keyed_normal(shape, {key.seed, key.first_sample}, "diffusion:noise", key.step, x0.dtype());
  RZ_CHECK(eps.shape() == shape && eps.dtype() == x0.dtype(), "noise {} for data {}", eps.str(), x0.str());
  const auto column = [&](const std::vector<double>& values) { return per_sample(values, shape, x0.dtype()); };
  const auto mix = [&](const std::vector<double>& p, const Tensor& x, const std::vector<double>& q, const Tensor& y) {
    return ops::add(ops::mul(column(p), x), ops::mul(column(q), y));
  };
  const Tensor x_t = mix(d.a, x0, d.s, eps);
  const Tensor noise_B = per_sample(d.c_noise, {B}, x0.dtype());
  Tensor F = network(ops::mul(column(d.c_in), x_t), noise_B, conditioning);

  Tensor bits_B;  // the variational term of each sample, bits per dimension
  if (process_.vlb) {
    const auto [value, v] = split_channels(F, shape, channel_dim_);
    F = value;
    const Tensor mean_of = process_.vlb->alone ? F : ops::detach(F);
    bits_B = variational_terms(*process_.path, d.t, x0, mix(d.c_skip, x_t, d.c_out, mean_of), v);
  }
  RZ_CHECK(F.shape() == shape, "the network maps {} to {}; it must keep the shape", x0.str(), F.str());

  std::vector<double> simple(static_cast<size_t>(B)), bound(static_cast<size_t>(B)), importance = d.weight;
  for (size_t b = 0; b < simple.size(); ++b) {
    simple[b] = process_.vlb && process_.vlb->alone ? 0 : loss_weight(process_, d.t[b]);
    bound[b] = process_.vlb ? process_.vlb->factor : 0;
  }
  const Tensor errors_B = mean_per_sample(ops::square(ops::sub(F, mix(d.x0_factor, x0, d.eps_factor, eps))));
  Tensor losses_B = ops::mul(per_sample(simple, {B}, x0.dtype()), errors_B);
  if (process_.vlb) losses_B = ops::add(losses_B, ops::mul(per_sample(bound, {B}, x0.dtype()), bits_B));

  LossResult result;
  result.times = d.t;
  result.sample_losses = losses_B.to_vector<double>();
  for (size_t b = 0; b < result.sample_losses.size(); ++b) result.sum += importance[b] * result.sample_losses[b];
  result.loss = ops::scale(ops::sum(ops::mul(per_sample(importance, {B}, x0.dtype()), losses_B)), scale);
  return result;
}

double loss_weight(const Process& process, double t) {
  if (process.weight == Weight::target) return 1;
  const Coef c = process.path->at(t);
  const double c_out = precond(process.parametrization, *process.path, t).c_out;
  switch (process.weight) {
    case Weight::target:
      return 1;
    case Weight::snr:
      return std::pow(c.a / c.s * c_out, 2);
    case Weight::x0:
      return c_out * c_out;
    case Weight::likelihood:
      return sde_at(*process.path, t).diffusion_squared * std::pow(c.a / (c.s * c.s) * c_out, 2);
  }
  return 1;
}

double bayes_loss(const Process& process, double std) {
  const double v = std * std;
  return process.times->expect([&](double t) {
    const Coef c = process.path->at(t);
    const double c_out = precond(process.parametrization, *process.path, t).c_out;
    const double error = v * c.s * c.s / (c.a * c.a * v + c.s * c.s);  // Var[x0 | x_t]
    return loss_weight(process, t) * error / (c_out * c_out);
  });
}

double initial_loss(const Process& process, double mean, double std) {
  return process.times->expect([&](double t) {
    const Mixture m = mixture(process.parametrization.target, process.path->at(t), process.parametrization.sigma_data);
    return loss_weight(process, t) * (m.x0_factor * m.x0_factor * (mean * mean + std * std) + m.eps_factor * m.eps_factor);
  });
}

}  // namespace rz::models::diffusion
