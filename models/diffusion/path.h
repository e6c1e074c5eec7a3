// Gaussian paths: x_t = a(t) x0 + s(t) eps with eps ~ N(0, I). A path is the only class that knows a noise schedule.
//
// * One convention everywhere: t in [0, 1], t = 0 is DATA (a = 1, s = 0), t = 1 is NOISE. Papers that count the other way, or in
//   integers, are converted here and nowhere else.
// * sigma = s / a is the noise seen from the data; D(x, t) = E[x0 | x_t] is the denoiser; score = (a D - x) / s^2.
// * Paths are immutable and computed in double. Thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace rz::models::diffusion {

// The path at one time, and its derivatives with respect to t.
struct Coef {
  double a = 1;
  double s = 0;
  double da = 0;
  double ds = 0;
  double sigma() const { return a == 0 ? std::numeric_limits<double>::infinity() : s / a; }
};

class Path {
 public:
  virtual ~Path() = default;
  virtual std::string name() const = 0;
  // t in [0, 1]; a path whose sigma has no bound of its own (edm) goes on beyond 1.
  virtual Coef at(double t) const = 0;
  // The time at which s / a = sigma; ConfigError naming the path's range when there is none. Default: bisection.
  virtual double t_of_sigma(double sigma) const;
  // The number T of discrete times (k + 1) / T, k = 0 .. T-1; 0 for a continuous path.
  virtual int64_t steps() const { return 0; }
  // The last time before data at which a sampler evaluates: below it lies only t = 0.
  virtual double t_min() const { return 0; }
  // The largest noise level that t_of_sigma finds.
  virtual double largest_sigma() const { return at(1).sigma(); }
  // Standard deviation of what sampling starts from at time t (mean 0). 1 where x_1 ~ N(0, I), else s(t).
  virtual double prior_std(double t) const { return at(t).s; }
};

using PathPtr = std::shared_ptr<const Path>;

// Any chain of T noising steps with variances betas[k]: a(t_k)^2 = prod (1 - beta), s^2 = 1 - a^2, t_k = (k + 1) / T.
// Between the times log a^2 is linear in t. Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", 2020, equation 4.
class DiscreteBetas final : public Path {
 public:
  // ConfigError unless 0 < beta < 1 for each, and at least one.
  DiscreteBetas(std::string name, std::vector<double> betas);
  std::string name() const override { return name_; }
  Coef at(double t) const override;
  double t_of_sigma(double sigma) const override;
  int64_t steps() const override { return static_cast<int64_t>(betas_.size()); }
  double t_min() const override { return time(0); }
  double prior_std(double) const override { return 1; }

  const std::vector<double>& betas() const { return betas_; }
  // a^2 after k + 1 steps.
  double alpha_bar(int64_t k) const { return alpha_bar_.at(static_cast<size_t>(k)); }
  double time(int64_t k) const { return static_cast<double>(k + 1) / static_cast<double>(betas_.size()); }

 private:
  std::string name_;
  std::vector<double> betas_;
  std::vector<double> alpha_bar_;
};

// The schedules in use, T numbers each.
std::vector<double> linear_betas(int64_t T, double first = 1e-4, double last = 0.02);             // Ho et al. 2020
std::vector<double> scaled_linear_betas(int64_t T, double first = 0.0015, double last = 0.0195);  // linear in sqrt(beta): latent diffusion
std::vector<double> sigmoid_betas(int64_t T, double first = 1e-4, double last = 0.02);            // sigmoid of linspace(-6, 6)
// min(1 - f((k+1)/T) / f(k/T), 0.999) with f(u) = cos^2((u + offset) / (1 + offset) pi/2): Nichol & Dhariwal 2021, equation 17.
std::vector<double> cosine_betas(int64_t T, double offset = 0.008, double largest = 0.999);

// Variance preserving: log a = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, s^2 = 1 - a^2. Song et al., "Score-based generative
// modeling through stochastic differential equations", 2021, appendix B and C; t_min is the time at which their sampler stops.
// `sub` gives the sub-VP path, s = 1 - a^2.
class VpLinear final : public Path {
 public:
  explicit VpLinear(double beta_min = 0.1, double beta_max = 20, bool sub = false, double t_min = 1e-3);
  std::string name() const override { return sub_ ? "subvp" : "vp"; }
  Coef at(double t) const override;
  double t_of_sigma(double sigma) const override;
  double t_min() const override { return t_min_; }
  double prior_std(double) const override { return 1; }

 private:
  double beta_min_, beta_max_;
  bool sub_;
  double t_min_;
};

// Variance exploding: a = 1, s = sigma_min (sigma_max / sigma_min)^t. Data lie below sigma_min: at(0) is a = 1, s = 0.
// `levels` > 0: that many geometric levels from sigma_min to sigma_max at t = 1/levels .. 1 instead (Song & Ermon 2019).
class VeGeometric final : public Path {
 public:
  VeGeometric(double sigma_min, double sigma_max, int64_t levels = 0, double t_min = 1e-5);
  std::string name() const override { return "ve"; }
  Coef at(double t) const override;
  double t_of_sigma(double sigma) const override;
  int64_t steps() const override { return levels_; }
  double t_min() const override { return levels_ > 0 ? 1.0 / static_cast<double>(levels_) : t_min_; }

 private:
  double sigma_min_, sigma_max_;
  int64_t levels_;
  double t_min_;
};

// a = 1, s = t sigma_max: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022. Sampling stops
// at sigma_min; times beyond 1 are allowed, since stochastic churn goes there.
class EdmIdentity final : public Path {
 public:
  explicit EdmIdentity(double sigma_min = 0.002, double sigma_max = 80);
  std::string name() const override { return "edm"; }
  Coef at(double t) const override { return {1, t * sigma_max_, 0, sigma_max_}; }
  double t_of_sigma(double sigma) const override;
  double t_min() const override { return sigma_min_ / sigma_max_; }
  double largest_sigma() const override { return std::numeric_limits<double>::infinity(); }

 private:
  double sigma_min_, sigma_max_;
};

// a = 1 - t, s = t: straight lines from data to noise (Liu, Gong, Liu 2022; Lipman et al. 2022; Albergo & Vanden-Eijnden 2022).
class RectFlow final : public Path {
 public:
  std::string name() const override { return "rect_flow"; }
  Coef at(double t) const override { return {1 - t, t, -1, 1}; }
  double t_of_sigma(double sigma) const override;
};

// a = cos(pi t / 2), s = sin(pi t / 2).
class Trig final : public Path {
 public:
  std::string name() const override { return "trig"; }
  Coef at(double t) const override;
  double t_of_sigma(double sigma) const override;
  double prior_std(double) const override { return 1; }
};

// Noising from time t_from to t_to >= t_from: x_to = gain x_from + sqrt(variance) z.
struct Transition {
  double gain = 1;
  double variance = 0;
};
Transition transition(const Coef& from, const Coef& to);

// q(x_to | x_from, x0) for t_to < t_from: mean = x0_factor x0 + x_factor x_from (Ho et al. 2020, equation 7, on any path).
struct Posterior {
  double x0_factor = 0;
  double x_factor = 0;
  double variance = 0;
};
Posterior posterior(const Coef& from, const Coef& to);

// The SDE dx = drift x dt + diffusion dw whose marginals the path gives; ConfigError where a = 0, naming path and t.
struct Sde {
  double drift = 0;
  double diffusion_squared = 0;
};
Sde sde_at(const Path& path, double t);

}  // namespace rz::models::diffusion
