// The update rules of all samplers, as templates over the state X that they move. A World says what X is:
//
//   Prediction<X> World::predict(const X& x, double t)     the denoiser
//   X             World::noise(const X& like, uint64_t d)  standard normal noise of like's shape, independent for each draw d
//   X             World::settle(X x)                       called between steps; may simplify x
//   scaled, combine, times, rms_ratio, learned_std         free functions, as in state.h
//
// Everything else is coefficients, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "models/diffusion/sampler.h"
#include "models/diffusion/state.h"

namespace rz::models::diffusion {

// An explicit Runge-Kutta method: stage i evaluates at node[i] with weights[i] of the earlier slopes.
struct Tableau {
  std::vector<double> nodes;
  std::vector<std::vector<double>> stages;
  std::vector<double> weights;
};

// The method for a step of a deterministic sampler. A step that ends in data (sigma = 0) cannot evaluate there: Heun is then Euler
// (Karras et al. 2022, algorithm 1, line 6), the fourth-order method the midpoint rule.
inline Tableau tableau(Method method, bool ends_in_data) {
  if (method == Method::heun && !ends_in_data) return {{0, 1}, {{}, {1}}, {0.5, 0.5}};
  if (method == Method::midpoint || (method == Method::rk4 && ends_in_data)) return {{0, 0.5}, {{}, {0.5}}, {0, 1}};
  if (method == Method::rk4) return {{0, 0.5, 0.5, 1}, {{}, {0.5}, {0, 0.5}, {0, 0, 1}}, {1. / 6, 1. / 3, 1. / 3, 1. / 6}};
  return {{0}, {{}}, {1}};
}

template <class World>
class SamplerLoop {
 public:
  using X = typename World::State;

  SamplerLoop(World& world, const Path& path, const Grid& grid, const SamplerConfig& config, const StepHook<X>& hook)
      : world_(world), path_(path), grid_(grid), config_(config), hook_(hook) {}

  X run(X x) {
    check_sampler(config_, path_, grid_);
    const auto N = static_cast<int64_t>(grid_.size()) - 1;
    for (int64_t i = 0; i < N; ++i) {
      step_ = static_cast<uint64_t>(i);
      draw_ = 0;
      const double t = grid_[static_cast<size_t>(i)], next = grid_[static_cast<size_t>(i) + 1];
      x = world_.settle(step(std::move(x), t, next));
      if (hook_) hook_({i, N, next, x, *x0_});
    }
    if (config_.method == Method::annealed_langevin && config_.langevin.denoise) x = world_.predict(x, last_time()).x0;
    return x;
  }

 private:
  // Data and noise that the denoiser sees in x.
  struct Parts {
    X x0;
    X eps;
    std::optional<X> variance;
  };

  // Noise never given out before: (step, how many in this step).
  X noise(const X& like) { return world_.noise(like, (step_ << 20) | draw_++); }

  Parts parts(const X& x, double t) {
    const Coef c = path_.at(t);
    Prediction<X> p = world_.predict(x, t);
    X eps = p.eps ? *p.eps : combine(1 / c.s, x, -c.a / c.s, p.x0);
    x0_ = p.x0;
    return {std::move(p.x0), std::move(eps), std::move(p.variance)};
  }

  double last_time() const { return grid_[grid_.size() - 2]; }

  X step(X x, double t, double next) {
    if (config_.method == Method::annealed_langevin) return langevin_level(std::move(x), t);
    if (!is_deterministic(config_.method)) {
      for (int64_t k = 0; k < config_.corrector.steps; ++k) x = correct(std::move(x), t, next);
      return config_.method == Method::euler_maruyama ? euler_maruyama(x, t, next) : reverse_diffusion(x, t, next);
    }
    if (config_.churn.amount > 0) t = churn(x, t);
    const Tableau method = tableau(config_.method, path_.at(next).s == 0);
    return method.nodes.size() == 1 ? first_order(x, t, next) : runge_kutta(method, std::move(x), t, next);
  }

  X first_order(const X& x, double t, double next) {
    const Coef from = path_.at(t), to = path_.at(next);
    const Parts p = parts(x, t);
    const Posterior q = posterior(from, to);
    const double g2 = config_.eta * config_.eta * q.variance;
    // eta is at most the largest that fits (check_sampler): below zero is rounding.
    const double kept = std::sqrt(std::max(0.0, to.s * to.s - g2));
    if (to.s == 0 || (g2 == 0 && config_.variance == Variance::fixed_small)) return combine(to.a, p.x0, kept, p.eps);
    const X z = noise(x);
    const double forward = transition(to, from).variance;
    if (config_.variance == Variance::fixed_small) return combine(to.a, p.x0, kept, p.eps, std::sqrt(g2), z);
    if (config_.variance == Variance::fixed_large) return combine(to.a, p.x0, kept, p.eps, std::sqrt(forward), z);
    RZ_CONFIG_CHECK(p.variance.has_value(), "variance learned needs a network that was trained with a learned range of variances");
    return combine(1, combine(to.a, p.x0, kept, p.eps), 1, times(learned_std(*p.variance, std::log(q.variance), std::log(forward)), z));
  }

  // dy/du at (u, y): d(x/a)/d sigma = eps, or dx/dt = a' x0 + s' eps.
  X slope(const X& y, double t) {
    const Coef c = path_.at(t);
    if (config_.coordinates == Coordinates::sigma) return parts(scaled(c.a, y), t).eps;
    const Parts p = parts(y, t);
    return combine(c.da, p.x0, c.ds, p.eps);
  }

  X runge_kutta(const Tableau& method, X x, double t, double next) {
    const bool sigma = config_.coordinates == Coordinates::sigma;
    const Coef from = path_.at(t), to = path_.at(next);
    const double u = sigma ? from.sigma() : t;
    const double h = (sigma ? to.sigma() : next) - u;
    const X y = sigma ? scaled(1 / from.a, x) : std::move(x);
    const auto advance = [&](const std::vector<double>& weights, const std::vector<X>& slopes) {
      X out = y;
      for (size_t j = 0; j < weights.size(); ++j)
        if (weights[j] != 0) out = combine(1, out, h * weights[j], slopes[j]);
      return out;
    };
    std::vector<X> slopes;
    std::optional<X> first_x0;
    for (size_t i = 0; i < method.nodes.size(); ++i) {
      const double node = method.nodes[i];
      const double at = node == 0 ? t : node == 1 ? next : sigma ? path_.t_of_sigma(u + node * h) : u + node * h;
      slopes.push_back(slope(advance(method.stages[i], slopes), at));
      if (i == 0) first_x0 = x0_;
    }
    x0_ = first_x0;
    X out = advance(method.weights, slopes);
    return sigma ? scaled(to.a, out) : out;
  }

  // Raises the noise of x and returns the time at which it then is.
  double churn(X& x, double t) {
    const Coef from = path_.at(t);
    const double sigma = from.sigma();
    if (sigma < config_.churn.low || sigma > config_.churn.high) return t;
    const double gamma = std::min(config_.churn.amount / static_cast<double>(grid_.size() - 1), std::numbers::sqrt2 - 1);
    const double raised = std::min(sigma * (1 + gamma), path_.largest_sigma());
    const double t_raised = path_.t_of_sigma(raised);
    const double gain = path_.at(t_raised).a / from.a;
    x = combine(gain, x, gain * from.a * config_.churn.noise * std::sqrt(std::max(0.0, raised * raised - sigma * sigma)), noise(x));
    return t_raised;
  }

  // dx = (f x - g^2 score) dt + g dw, backwards over t - next; score = -eps / s.
  X euler_maruyama(const X& x, double t, double next) {
    const Sde sde = sde_at(path_, t);
    const double dt = t - next, s = path_.at(t).s;
    const Parts p = parts(x, t);
    const double along = 1 - sde.drift * dt, down = -sde.diffusion_squared * dt / s;
    if (next == 0) return combine(along, x, down, p.eps);
    return combine(along, x, down, p.eps, std::sqrt(sde.diffusion_squared * dt), noise(x));
  }

  // The forward step x_t = A x_next + B z, reversed as x_next = (2 - A) x + B^2 score + B z.
  X reverse_diffusion(const X& x, double t, double next) {
    const Coef from = path_.at(t);
    const Transition forward = transition(path_.at(next), from);
    const Parts p = parts(x, t);
    if (next == 0) return combine(2 - forward.gain, x, -forward.variance / from.s, p.eps);
    return combine(2 - forward.gain, x, -forward.variance / from.s, p.eps, std::sqrt(forward.variance), noise(x));
  }

  X correct(X x, double t, double next) {
    const double s = path_.at(t).s;
    const double gain = transition(path_.at(next), path_.at(t)).gain;
    const Parts p = parts(x, t);
    const X z = noise(x);
    // |z| / |score| = s |z| / |eps|;  x + step score + sqrt(2 step) z with step = 2 (gain snr |z| / |score|)^2
    const auto ratio = rms_ratio(z, p.eps);
    const double k = gain * config_.corrector.snr * s;
    return combine(1, x, -2 * k * k / s, times(ratio, times(ratio, p.eps)), 2 * k, times(ratio, z));
  }

  X langevin_level(X x, double t) {
    const double s = path_.at(t).s;
    const double relative = s / path_.at(last_time()).s;
    const double size = config_.langevin.step * relative * relative;
    for (int64_t k = 0; k < config_.langevin.steps; ++k) {
      const Parts p = parts(x, t);
      x = world_.settle(combine(1, x, -size / s, p.eps, std::sqrt(2 * size), noise(x)));
    }
    return x;
  }

  World& world_;
  const Path& path_;
  const Grid& grid_;
  const SamplerConfig& config_;
  const StepHook<X>& hook_;
  uint64_t step_ = 0;
  uint64_t draw_ = 0;
  std::optional<X> x0_;
};

}  // namespace rz::models::diffusion
