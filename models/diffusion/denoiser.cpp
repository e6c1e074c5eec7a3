#include "models/diffusion/denoiser.h"

#include <algorithm>
#include <cmath>

#include "models/diffusion/classifier.h"
#include "models/diffusion/state.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/parallel.h"
#include "runtime/ops/ops.h"
#include "runtime/ops/softmax.h"

namespace rz::models::diffusion {

namespace {

Tensor noise_levels(int64_t count, double value, DType dtype) { return Tensor::full({count}, value, dtype, "noise level"); }

// The noise that x0 implies.
Tensor implied_eps(const Tensor& x, const Tensor& x0, const Coef& c) { return combine(1 / c.s, x, -c.a / c.s, x0); }

}  // namespace

NetworkDenoiser::NetworkDenoiser(Network network, PathPtr path, Parametrization parametrization, bool learned_variance, int channel_dim)
    : network_(std::move(network)),
      path_(std::move(path)),
      parametrization_(parametrization),
      learned_variance_(learned_variance),
      channel_dim_(channel_dim) {}

Prediction<Tensor> NetworkDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  const Precond p = precond(parametrization_, *path_, t);
  const Tensor input = p.c_in == 1 ? x : ops::scale(x, p.c_in);
  Tensor F = network_(input, noise_levels(x.size(0), p.c_noise, x.dtype()), conditioning);
  Prediction<Tensor> out;
  if (learned_variance_) {
    const auto [value, variance] = split_channels(F, x.shape(), channel_dim_);
    F = value;
    out.variance = variance;
  }
  RZ_CHECK(F.shape() == x.shape(), "the network maps {} to {}; it must keep the shape", x.str(), F.str());
  out.x0 = p.c_skip == 0 ? ops::scale(F, p.c_out) : combine(p.c_skip, x, p.c_out, F);
  return out;
}

GuidedDenoiser::GuidedDenoiser(DenoiserPtr inner, double weight, int32_t null_label)
    : inner_(std::move(inner)), weight_(weight), null_label_(null_label) {
  RZ_CONFIG_CHECK(std::isfinite(weight), "guidance weight {} is not finite", weight);
}

Prediction<Tensor> GuidedDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  Conditioning none = conditioning;
  none.labels = constant_labels(x.size(0), null_label_);
  if (weight_ == 0 || !conditioning.labels.defined()) return inner_->predict(x, t, none);
  Prediction<Tensor> with = inner_->predict(x, t, conditioning);
  if (weight_ == 1) return with;
  const Prediction<Tensor> without = inner_->predict(x, t, none);
  with.x0 = combine(weight_, with.x0, 1 - weight_, without.x0);
  if (with.eps && without.eps) with.eps = combine(weight_, *with.eps, 1 - weight_, *without.eps);
  return with;
}

LogLikelihood log_likelihood_of(const Classifier& classifier) {
  return [&classifier](const Tensor& x, const Tensor& noise_B, const Conditioning& conditioning) {
    RZ_CHECK(conditioning.labels.defined(), "guidance by a classifier needs labels");
    const Tensor log_p = ops::log_softmax(classifier.forward(x, classifier.config().noise_levels ? noise_B : Tensor()).logits);
    const int64_t B = x.size(0);
    return ops::reshape(ops::gather(log_p, 1, conditioning.labels.view_reshape({B, 1})), {B});
  };
}

ClassifierGuidedDenoiser::ClassifierGuidedDenoiser(DenoiserPtr inner, LogLikelihood classifier, PathPtr path, NoiseInput noise,
                                                   double scale)
    : inner_(std::move(inner)), classifier_(std::move(classifier)), path_(std::move(path)), noise_(noise), scale_(scale) {}

Prediction<Tensor> ClassifierGuidedDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  Prediction<Tensor> out = inner_->predict(x, t, conditioning);
  const Coef c = path_->at(t);
  if (c.a == 0) return out;
  Tensor gradient;
  {
    autograd::GradMode recording(true);
    Tensor leaf = x.view_alias();
    autograd::set_requires_grad(leaf, true);
    const Tensor log_p_B = classifier_(leaf, noise_levels(x.size(0), noise_input(noise_, *path_, t), x.dtype()), conditioning);
    RZ_CHECK(log_p_B.shape() == Shape{x.size(0)}, "the classifier must give one number per sample, not {}", log_p_B.str());
    RZ_CHECK(autograd::needs_grad({log_p_B}), "guidance needs a classifier whose derivative with respect to x is recorded");
    gradient = autograd::grad({ops::sum(log_p_B)}, {leaf}).front();
  }
  out.x0 = combine(1, out.x0, scale_ * c.s * c.s / c.a, gradient);
  if (out.eps) out.eps = combine(1, *out.eps, -scale_ * c.s, gradient);
  return out;
}

ClampedDenoiser::ClampedDenoiser(DenoiserPtr inner, PathPtr path, double low, double high, bool rederive_eps)
    : inner_(std::move(inner)), path_(std::move(path)), low_(low), high_(high), rederive_eps_(rederive_eps) {
  RZ_CONFIG_CHECK(low < high, "cannot clamp to [{}, {}]", low, high);
}

Prediction<Tensor> ClampedDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  Prediction<Tensor> out = inner_->predict(x, t, conditioning);
  if (rederive_eps_)
    out.eps.reset();
  else if (!out.eps)
    out.eps = implied_eps(x, out.x0, path_->at(t));
  out.x0 = ops::clamp(out.x0, low_, high_);
  return out;
}

ConvertedDenoiser::ConvertedDenoiser(DenoiserPtr inner, PathPtr from, PathPtr to)
    : inner_(std::move(inner)), from_(std::move(from)), to_(std::move(to)) {}

Prediction<Tensor> ConvertedDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  const Coef to = to_->at(t);
  RZ_CONFIG_CHECK(to.a != 0, "path {} has no data left at t = {}: a network of path {} cannot be used there, start below it", to_->name(),
                  t, from_->name());
  const double t_from = from_->t_of_sigma(to.sigma());
  return inner_->predict(ops::scale(x, from_->at(t_from).a / to.a), t_from, conditioning);
}

double gaussian_gain(const Coef& c, double std) {
  const double v = std * std;
  return c.a * v / (c.a * c.a * v + c.s * c.s);
}

Prediction<Tensor> GaussianDenoiser::predict(const Tensor& x, double t, const Conditioning&) const {
  const Coef c = path_->at(t);
  const double gain = gaussian_gain(c, std_);
  return {ops::shift(ops::scale(x, gain), mean_ * (1 - gain * c.a)), {}, {}};
}

MixtureDenoiser::MixtureDenoiser(PathPtr path, std::vector<Component> components)
    : path_(std::move(path)), components_(std::move(components)) {
  RZ_CHECK(!components_.empty(), "a mixture needs components");
  for (const Component& k : components_) {
    RZ_CHECK(k.weight > 0 && k.std >= 0 && k.label >= 0 && k.mean.size() == components_.front().mean.size(),
             "a component of a mixture: weight {}, std {}, label {}, {} numbers beside {}", k.weight, k.std, k.label, k.mean.size(),
             components_.front().mean.size());
    labels_ = std::max(labels_, k.label + 1);
  }
}

Prediction<Tensor> MixtureDenoiser::predict(const Tensor& x, double t, const Conditioning& conditioning) const {
  const int64_t B = x.size(0);
  const int64_t D = B == 0 ? 0 : x.numel() / B;
  RZ_CHECK(x.is_contiguous() && (B == 0 || D == static_cast<int64_t>(components_.front().mean.size())),
           "a mixture in {} dimensions does not fit {}", components_.front().mean.size(), x.str());
  const Coef c = path_->at(t);
  const auto labels =
      conditioning.labels.defined() ? conditioning.labels.to_vector<int32_t>() : std::vector<int32_t>(static_cast<size_t>(B), -1);
  Tensor x0 = Tensor::empty(x.shape(), x.dtype(), "mixture denoiser");
  dispatch_floating(x.dtype(), "mixture denoiser", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = x.data<T>();
    T* to = x0.data<T>();
    parallel_for(B, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> log_p(components_.size()), mean(static_cast<size_t>(D));
      for (int64_t b = begin; b < end; ++b) {
        const T* row = from + b * D;
        const int32_t label = labels[static_cast<size_t>(b)];
        const bool all = label < 0 || label >= labels_;
        double most = -std::numeric_limits<double>::infinity();
        for (size_t k = 0; k < components_.size(); ++k) {
          const Component& q = components_[k];
          const double variance = c.a * c.a * q.std * q.std + c.s * c.s;
          double squares = 0;
          for (int64_t i = 0; i < D; ++i) {
            const double d = static_cast<double>(static_cast<compute_t<T>>(row[i])) - c.a * q.mean[static_cast<size_t>(i)];
            squares += d * d;
          }
          log_p[k] = all || q.label == label
                         ? std::log(q.weight) - 0.5 * squares / variance - 0.5 * static_cast<double>(D) * std::log(variance)
                         : -std::numeric_limits<double>::infinity();
          most = std::max(most, log_p[k]);
        }
        std::fill(mean.begin(), mean.end(), 0.0);
        double total = 0;
        for (size_t k = 0; k < components_.size(); ++k) {
          const double share = std::exp(log_p[k] - most);
          if (share == 0) continue;
          total += share;
          const Component& q = components_[k];
          const double gain = gaussian_gain(c, q.std);
          for (int64_t i = 0; i < D; ++i) {
            const double m = q.mean[static_cast<size_t>(i)];
            mean[static_cast<size_t>(i)] += share * (m + gain * (static_cast<double>(static_cast<compute_t<T>>(row[i])) - c.a * m));
          }
        }
        for (int64_t i = 0; i < D; ++i) to[b * D + i] = static_cast<T>(static_cast<compute_t<T>>(mean[static_cast<size_t>(i)] / total));
      }
    });
  });
  return {x0, {}, {}};
}

}  // namespace rz::models::diffusion
