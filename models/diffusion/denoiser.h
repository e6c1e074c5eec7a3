// Denoisers: D(x, t) = E[x0 | x_t = x]. A network is one, and decorators change what it says. All are pure functions of their
// arguments (a network's weights aside): none counts steps, none draws random numbers.
//
//   NetworkDenoiser -> GuidedDenoiser (classifier-free) -> ClassifierGuidedDenoiser -> ClampedDenoiser, ConvertedDenoiser
//   GaussianDenoiser, MixtureDenoiser: the exact answer for data whose distribution is known
#pragma once

#include <memory>
#include <vector>

#include "models/diffusion/conditioning.h"
#include "models/diffusion/prediction.h"
#include "models/diffusion/target.h"

namespace rz::models::diffusion {

class Denoiser {
 public:
  virtual ~Denoiser() = default;
  // x [B, ..] f32 (or f64), all samples at time t.
  virtual Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const = 0;
};

using DenoiserPtr = std::shared_ptr<const Denoiser>;

// c_skip x + c_out F(c_in x, c_noise). With `learned_variance` F has twice x's channels along `channel_dim`: F, then v.
class NetworkDenoiser final : public Denoiser {
 public:
  NetworkDenoiser(Network network, PathPtr path, Parametrization parametrization, bool learned_variance = false, int channel_dim = -1);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  Network network_;
  PathPtr path_;
  Parametrization parametrization_;
  bool learned_variance_;
  int channel_dim_;
};

// Classifier-free guidance, D_u + weight (D_c - D_u) with D_u at label `null_label`: weight 0 is the unconditional denoiser, 1 the
// conditional one, each alone and bit for bit. Ho & Salimans 2022, whose own w is weight - 1. Without labels: unconditional.
class GuidedDenoiser final : public Denoiser {
 public:
  GuidedDenoiser(DenoiserPtr inner, double weight, int32_t null_label);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  DenoiserPtr inner_;
  double weight_;
  int32_t null_label_;
};

// log p(y | x_t) for each sample [B], recorded for backward; noise as the classifier was trained with.
using LogLikelihood = std::function<Tensor(const Tensor& x, const Tensor& noise_B, const Conditioning& conditioning)>;

// log softmax of the classifier's logits at each sample's label.
class Classifier;
LogLikelihood log_likelihood_of(const Classifier& classifier);

// Classifier guidance: eps - s scale grad_x log p(y | x_t), that is D + (s^2 / a) scale grad. Dhariwal & Nichol 2021, algorithm 2, on any
// path. Where a = 0, x is noise that says nothing of y: the gradient is zero, and nothing is guided.
class ClassifierGuidedDenoiser final : public Denoiser {
 public:
  ClassifierGuidedDenoiser(DenoiserPtr inner, LogLikelihood classifier, PathPtr path, NoiseInput noise, double scale);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  DenoiserPtr inner_;
  LogLikelihood classifier_;
  PathPtr path_;
  NoiseInput noise_;
  double scale_;
};

// x0 clamped to [low, high]. `rederive_eps`: the noise follows from the clamped x0 (OpenAI's samplers); without it stays what it was
// before clamping (the default of diffusers).
class ClampedDenoiser final : public Denoiser {
 public:
  ClampedDenoiser(DenoiserPtr inner, PathPtr path, double low = -1, double high = 1, bool rederive_eps = true);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  DenoiserPtr inner_;
  PathPtr path_;
  double low_, high_;
  bool rederive_eps_;
};

// A denoiser of path `from` used on path `to`: paths differ only in scale and in when which sigma comes, so
// D_to(x, t) = D_from(x a_from / a_to, t_from) with equal sigma. ConfigError where `from` never has that sigma, or a_to = 0.
class ConvertedDenoiser final : public Denoiser {
 public:
  ConvertedDenoiser(DenoiserPtr inner, PathPtr from, PathPtr to);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  DenoiserPtr inner_;
  PathPtr from_, to_;
};

// D = mean + gain (x - a mean) for data N(mean, std^2) in every coordinate.
double gaussian_gain(const Coef& c, double std);

// Data N(mean, std^2) in every coordinate. Recorded for backward.
class GaussianDenoiser final : public Denoiser {
 public:
  GaussianDenoiser(PathPtr path, double mean, double std) : path_(std::move(path)), mean_(mean), std_(std) {}
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  PathPtr path_;
  double mean_, std_;
};

// One isotropic Gaussian of a mixture; std 0 is a data point.
struct Component {
  double weight = 1;
  std::vector<double> mean;  // as many numbers as a sample has
  double std = 0;
  int32_t label = 0;
};

// Data from a mixture of Gaussians, or a finite data set (every std 0): the ideal denoiser is an average of the components' own,
// weighted by how likely each is given x. Samples with a label in [0, labels) see the components of that label only. Computed in
// double; not recorded for backward.
class MixtureDenoiser final : public Denoiser {
 public:
  MixtureDenoiser(PathPtr path, std::vector<Component> components);
  Prediction<Tensor> predict(const Tensor& x, double t, const Conditioning& conditioning) const override;

 private:
  PathPtr path_;
  std::vector<Component> components_;
  int32_t labels_ = 0;
};

}  // namespace rz::models::diffusion
