#include "models/diffusion/path.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/core/error.h"

namespace rz::models::diffusion {

namespace {

constexpr double kHalfPi = std::numbers::pi / 2;

// numpy's linspace.
double linspace(double first, double last, int64_t i, int64_t n) {
  return n > 1 ? (i == n - 1 ? last : first + static_cast<double>(i) * ((last - first) / static_cast<double>(n - 1))) : first;
}

void check_sigma(const Path& path, double sigma, double low, double high) {
  RZ_CONFIG_CHECK(sigma >= low && sigma <= high, "sigma {} is outside path {}, whose noise levels go from {} to {}", sigma, path.name(),
                  low, high);
}

void check_betas(int64_t T, double first, double last) {
  RZ_CONFIG_CHECK(T >= 1, "a noise schedule needs at least one step, not {}", T);
  RZ_CONFIG_CHECK(first > 0 && first <= last && last < 1, "betas from {} to {}: they must ascend within (0, 1)", first, last);
}

}  // namespace

double Path::t_of_sigma(double sigma) const {
  check_sigma(*this, sigma, at(0).sigma(), at(1).sigma());
  double low = 0, high = 1;
  for (;;) {
    const double middle = 0.5 * (low + high);
    if (middle <= low || middle >= high) return high;
    (at(middle).sigma() < sigma ? low : high) = middle;
  }
}

DiscreteBetas::DiscreteBetas(std::string name, std::vector<double> betas) : name_(std::move(name)), betas_(std::move(betas)) {
  RZ_CONFIG_CHECK(!betas_.empty(), "path {}: a noise schedule needs at least one step", name_);
  double product = 1;
  for (const double beta : betas_) {
    RZ_CONFIG_CHECK(beta > 0 && beta < 1, "path {}: beta {} is not in (0, 1)", name_, beta);
    product *= 1 - beta;
    alpha_bar_.push_back(product);
  }
}

Coef DiscreteBetas::at(double t) const {
  const auto T = static_cast<double>(betas_.size());
  const double u = t * T;
  const double nearest = std::nearbyint(u);
  const bool on_time = std::abs(u - nearest) < 1e-9;
  // The step that ends at t, or that t lies in.
  const auto k = std::clamp<int64_t>(static_cast<int64_t>(on_time ? nearest : std::ceil(u)) - 1, 0, steps() - 1);
  const double slope = T * std::log1p(-betas_[static_cast<size_t>(k)]);  // of log a^2
  double ab;
  if (on_time && nearest <= 0)
    ab = 1;
  else if (on_time)
    ab = alpha_bar(k);
  else
    ab = (k == 0 ? 1 : alpha_bar(k - 1)) * std::exp(slope * (t - static_cast<double>(k) / T));
  const double a = std::sqrt(ab);
  const double s = std::sqrt(1 - ab);
  return {a, s, 0.5 * slope * a, -0.5 * slope * ab / s};
}

double DiscreteBetas::t_of_sigma(double sigma) const {
  const double largest = at(1).sigma();
  if (sigma > largest && sigma < largest * (1 + 1e-12)) return 1;
  check_sigma(*this, sigma, 0, largest);
  const double ab = 1 / (1 + sigma * sigma);
  const auto k = std::partition_point(alpha_bar_.begin(), alpha_bar_.end(), [&](double v) { return v > ab; }) - alpha_bar_.begin();
  if (k == steps()) return 1;
  const double before = k == 0 ? 1 : alpha_bar(k - 1);
  const double part = std::log(ab / before) / std::log1p(-betas_[static_cast<size_t>(k)]);
  return (static_cast<double>(k) + std::clamp(part, 0.0, 1.0)) / static_cast<double>(steps());
}

std::vector<double> linear_betas(int64_t T, double first, double last) {
  check_betas(T, first, last);
  std::vector<double> betas;
  for (int64_t i = 0; i < T; ++i) betas.push_back(linspace(first, last, i, T));
  return betas;
}

std::vector<double> scaled_linear_betas(int64_t T, double first, double last) {
  check_betas(T, first, last);
  std::vector<double> betas;
  for (int64_t i = 0; i < T; ++i) {
    const double root = linspace(std::sqrt(first), std::sqrt(last), i, T);
    betas.push_back(root * root);
  }
  return betas;
}

std::vector<double> sigmoid_betas(int64_t T, double first, double last) {
  check_betas(T, first, last);
  std::vector<double> betas;
  for (int64_t i = 0; i < T; ++i) betas.push_back(first + (last - first) / (1 + std::exp(-linspace(-6, 6, i, T))));
  return betas;
}

std::vector<double> cosine_betas(int64_t T, double offset, double largest) {
  RZ_CONFIG_CHECK(T >= 1, "a noise schedule needs at least one step, not {}", T);
  const auto f = [&](int64_t i) {
    const double c = std::cos((static_cast<double>(i) / static_cast<double>(T) + offset) / (1 + offset) * kHalfPi);
    return c * c;
  };
  std::vector<double> betas;
  for (int64_t i = 0; i < T; ++i) betas.push_back(std::min(1 - f(i + 1) / f(i), largest));
  return betas;
}

VpLinear::VpLinear(double beta_min, double beta_max, bool sub, double t_min)
    : beta_min_(beta_min), beta_max_(beta_max), sub_(sub), t_min_(t_min) {
  RZ_CONFIG_CHECK(beta_min > 0 && beta_max >= beta_min, "path {}: beta from {} to {}: both must be positive, ascending", name(), beta_min,
                  beta_max);
  RZ_CONFIG_CHECK(t_min > 0 && t_min < 1, "path {}: its smallest time {} is not in (0, 1)", name(), t_min);
}

Coef VpLinear::at(double t) const {
  const double slope = beta_max_ - beta_min_;
  const double log_a = -0.25 * t * t * slope - 0.5 * t * beta_min_;
  const double rate = -0.5 * (t * slope + beta_min_);  // d log a / dt
  const double a = std::exp(log_a);
  const double variance = -std::expm1(2 * log_a);  // 1 - a^2
  if (sub_) return {a, variance, rate * a, -2 * rate * a * a};
  const double s = std::sqrt(variance);
  return {a, s, rate * a, -rate * a * a / s};
}

double VpLinear::t_of_sigma(double sigma) const {
  if (sub_) return Path::t_of_sigma(sigma);
  const double slope = beta_max_ - beta_min_;
  const double L = std::log1p(sigma * sigma);  // = -2 log a = t^2 slope / 2 + t beta_min
  const double t = 2 * L / (beta_min_ + std::sqrt(beta_min_ * beta_min_ + 2 * slope * L));
  RZ_CONFIG_CHECK(sigma >= 0 && t <= 1 + 1e-12, "sigma {} is outside path {}, whose noise levels go from 0 to {}", sigma, name(),
                  at(1).sigma());
  return t;
}

VeGeometric::VeGeometric(double sigma_min, double sigma_max, int64_t levels, double t_min)
    : sigma_min_(sigma_min), sigma_max_(sigma_max), levels_(levels), t_min_(t_min) {
  RZ_CONFIG_CHECK(sigma_min > 0 && sigma_max > sigma_min, "path ve: sigma from {} to {}: both must be positive, ascending", sigma_min,
                  sigma_max);
  RZ_CONFIG_CHECK(levels == 0 || levels >= 2, "path ve: {} noise levels; give at least 2, or 0 for continuous ones", levels);
}

Coef VeGeometric::at(double t) const {
  if (t <= 0) return {1, 0, 0, 0};
  const double rate = std::log(sigma_max_ / sigma_min_);
  if (levels_ == 0) {
    const double s = sigma_min_ * std::exp(rate * t);
    return {1, s, 0, s * rate};
  }
  const auto L = static_cast<double>(levels_);
  const double level = t * L - 1;  // 0: the lowest
  if (level < 0) return {1, sigma_min_ * t * L, 0, sigma_min_ * L};
  const double s = sigma_min_ * std::exp(rate * level / (L - 1));
  return {1, s, 0, s * rate * L / (L - 1)};
}

double VeGeometric::t_of_sigma(double sigma) const {
  if (sigma == 0) return 0;
  const double low = levels_ > 0 ? 0 : sigma_min_;
  check_sigma(*this, sigma, low * (1 - 1e-12), sigma_max_ * (1 + 1e-12));
  const double part = std::log(sigma / sigma_min_) / std::log(sigma_max_ / sigma_min_);
  if (levels_ == 0) return std::clamp(part, 0.0, 1.0);
  const auto L = static_cast<double>(levels_);
  return sigma < sigma_min_ ? sigma / sigma_min_ / L : std::min(1.0, (part * (L - 1) + 1) / L);
}

EdmIdentity::EdmIdentity(double sigma_min, double sigma_max) : sigma_min_(sigma_min), sigma_max_(sigma_max) {
  RZ_CONFIG_CHECK(sigma_min > 0 && sigma_max > sigma_min, "path edm: sigma from {} to {}: both must be positive, ascending", sigma_min,
                  sigma_max);
}

double EdmIdentity::t_of_sigma(double sigma) const {
  RZ_CONFIG_CHECK(sigma >= 0 && std::isfinite(sigma), "sigma {} is outside path edm, whose noise levels begin at 0", sigma);
  return sigma / sigma_max_;
}

double RectFlow::t_of_sigma(double sigma) const {
  RZ_CONFIG_CHECK(sigma >= 0, "sigma {} is outside path rect_flow, whose noise levels begin at 0", sigma);
  return std::isinf(sigma) ? 1 : sigma / (1 + sigma);
}

Coef Trig::at(double t) const {
  const double s = std::sin(kHalfPi * t);
  const double a = t == 1 ? 0 : std::cos(kHalfPi * t);  // cos(pi/2) is not 0 in floating point
  return {a, s, -kHalfPi * s, kHalfPi * a};
}

double Trig::t_of_sigma(double sigma) const {
  RZ_CONFIG_CHECK(sigma >= 0, "sigma {} is outside path trig, whose noise levels begin at 0", sigma);
  return std::atan(sigma) / kHalfPi;
}

Transition transition(const Coef& from, const Coef& to) {
  const double gain = to.a / from.a;
  return {gain, std::max(0.0, to.s * to.s - gain * gain * from.s * from.s)};
}

Posterior posterior(const Coef& from, const Coef& to) {
  const Transition step = transition(to, from);
  const double s2 = from.s * from.s;
  const double keep = to.s * to.s / s2;
  return {to.a * step.variance / s2, step.gain * keep, step.variance * keep};
}

Sde sde_at(const Path& path, double t) {
  const Coef c = path.at(t);
  RZ_CONFIG_CHECK(c.a != 0, "path {} has no diffusion equation at t = {}, where a = 0: start below it, or convert to path vp", path.name(),
                  t);
  const double drift = c.da / c.a;
  return {drift, 2 * c.s * (c.ds - drift * c.s)};
}

}  // namespace rz::models::diffusion
