#include "models/diffusion/time_dist.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/core/error.h"
#include "runtime/core/random.h"

namespace rz::models::diffusion {

namespace {

double index_time(int64_t k, int64_t T) { return static_cast<double>(k + 1) / static_cast<double>(T); }

int64_t index_of(double u, int64_t T) { return std::clamp<int64_t>(static_cast<int64_t>(u * static_cast<double>(T)), 0, T - 1); }

double mean_over_indices(int64_t T, const std::function<double(double)>& f) {
  double sum = 0;
  for (int64_t k = 0; k < T; ++k) sum += f(index_time(k, T));
  return sum / static_cast<double>(T);
}

}  // namespace

double normal_quantile(double u) {
  RZ_CHECK(u > 0 && u < 1, "the normal quantile of {} is not finite", u);
  if (u > 0.5) return -normal_quantile(1 - u);
  // Newton on log Phi, which is concave: from the left of the root it climbs without ever passing it.
  double x = -std::sqrt(-2 * std::log(u));
  for (int i = 0; i < 60; ++i) {
    const double phi = 0.5 * std::erfc(-x / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
    const double step = (std::log(phi) - std::log(u)) * phi / density;
    x -= step;
    if (std::abs(step) <= 1e-15 * std::max(1.0, std::abs(x))) break;
  }
  return x;
}

double TimeDist::uniform(const SampleKey& key) {
  // Half a step off the grid of 53 bits: never 0.
  return Random(key.seed, "diffusion:time", key.step, key.first_sample).uniform64(0) + 0x1.0p-54;
}

TimeDraw TimeDist::draw(const SampleKey& key) const { return {quantile(uniform(key)), 1}; }

double TimeDist::expect(const std::function<double(double)>& f) const {
  // Integral of f(quantile(u)) over (0, 1) with u = 1 / (1 + exp(-pi sinh x)): double exponential decay at both ends.
  constexpr double kStep = 1.0 / 128;
  double sum = 0, weights = 0;
  for (int i = -512; i <= 512; ++i) {
    const double x = kStep * i;
    const double u = 1 / (1 + std::exp(-std::numbers::pi * std::sinh(x)));
    const double weight = u * (1 - u) * std::cosh(x);  // du/dx up to a constant
    if (u <= 0 || u >= 1 || weight == 0) continue;
    sum += weight * f(quantile(u));
    weights += weight;
  }
  return sum / weights;
}

UniformIndex::UniformIndex(int64_t T) : T_(T) { RZ_CONFIG_CHECK(T >= 1, "uniform timesteps need at least one, not {}", T); }
double UniformIndex::quantile(double u) const { return index_time(index_of(u, T_), T_); }
double UniformIndex::expect(const std::function<double(double)>& f) const { return mean_over_indices(T_, f); }

UniformTime::UniformTime(double low, double high) : low_(low), high_(high) {
  RZ_CONFIG_CHECK(0 <= low && low < high && high <= 1, "uniform times from {} to {}: they must ascend within [0, 1]", low, high);
}

LogitNormalTime::LogitNormalTime(double mean, double std, double shift) : mean_(mean), std_(std), shift_(shift) {
  RZ_CONFIG_CHECK(std > 0 && shift > 0, "logit-normal times need a positive standard deviation and shift, not {} and {}", std, shift);
}
double LogitNormalTime::quantile(double u) const {
  const double t = 1 / (1 + std::exp(-(mean_ + std_ * normal_quantile(u))));
  return shift_ * t / (1 + (shift_ - 1) * t);
}

LogNormalSigma::LogNormalSigma(PathPtr path, double mean, double std) : path_(std::move(path)), mean_(mean), std_(std) {
  RZ_CONFIG_CHECK(std > 0, "log-normal noise levels need a positive standard deviation, not {}", std);
}
double LogNormalSigma::quantile(double u) const {
  const double sigma = std::exp(mean_ + std_ * normal_quantile(u));
  return path_->t_of_sigma(std::min(sigma, path_->largest_sigma()));
}

LogUniformSigma::LogUniformSigma(PathPtr path, double sigma_min, double sigma_max)
    : path_(std::move(path)), sigma_min_(sigma_min), sigma_max_(sigma_max) {
  RZ_CONFIG_CHECK(sigma_min > 0 && sigma_max > sigma_min, "log-uniform noise levels from {} to {}: both must be positive, ascending",
                  sigma_min, sigma_max);
}
double LogUniformSigma::quantile(double u) const { return path_->t_of_sigma(sigma_min_ * std::pow(sigma_max_ / sigma_min_, u)); }

StratifiedTime::StratifiedTime(std::shared_ptr<const TimeDist> base, int64_t global_batch)
    : base_(std::move(base)), global_batch_(global_batch) {
  RZ_CONFIG_CHECK(global_batch >= 1, "stratified times need the size of the global batch, not {}", global_batch);
}
TimeDraw StratifiedTime::draw(const SampleKey& key) const {
  const double offset = Random(key.seed, "diffusion:strata", key.step).uniform64(0) + 0x1.0p-54;
  const auto B = static_cast<double>(global_batch_);
  const double u = (static_cast<double>(key.first_sample % static_cast<uint64_t>(global_batch_)) + offset) / B;
  return {base_->quantile(std::clamp(u, 0x1.0p-54, 1 - 0x1.0p-53)), 1};
}

LossAwareTime::LossAwareTime(int64_t T, int64_t history, double floor) : T_(T), history_(history), floor_(floor) {
  RZ_CONFIG_CHECK(T >= 1 && history >= 1 && floor > 0 && floor <= 1,
                  "loss-aware timesteps need steps and history of at least 1 and a uniform part in (0, 1], not {}, {}, {}", T, history,
                  floor);
  losses_.resize(static_cast<size_t>(T));
  refresh();
}

void LossAwareTime::refresh() {
  const auto T = static_cast<double>(T_);
  probabilities_.assign(static_cast<size_t>(T_), 1 / T);
  const bool warm = std::all_of(losses_.begin(), losses_.end(), [&](const auto& l) { return static_cast<int64_t>(l.size()) == history_; });
  if (warm) {
    double total = 0;
    for (size_t k = 0; k < losses_.size(); ++k) {
      double squares = 0;
      for (const double loss : losses_[k]) squares += loss * loss;
      probabilities_[k] = std::sqrt(squares / static_cast<double>(history_));
      total += probabilities_[k];
    }
    // All losses zero: nothing to prefer.
    for (double& p : probabilities_) p = total > 0 ? p / total * (1 - floor_) + floor_ / T : 1 / T;
  }
  cumulative_.clear();
  double sum = 0;
  for (const double p : probabilities_) cumulative_.push_back(sum += p);
}

int64_t LossAwareTime::pick(double u) const {
  const auto at = std::upper_bound(cumulative_.begin(), cumulative_.end(), u * cumulative_.back()) - cumulative_.begin();
  return std::min<int64_t>(at, T_ - 1);
}

double LossAwareTime::quantile(double u) const { return index_time(pick(u), T_); }

TimeDraw LossAwareTime::draw(const SampleKey& key) const {
  const int64_t k = pick(uniform(key));
  return {index_time(k, T_), 1 / (static_cast<double>(T_) * probabilities_[static_cast<size_t>(k)])};
}

double LossAwareTime::expect(const std::function<double(double)>& f) const { return mean_over_indices(T_, f); }

void LossAwareTime::update(std::span<const Observation> observations) {
  for (const auto& [t, loss] : observations) {
    const auto k = static_cast<int64_t>(std::nearbyint(t * static_cast<double>(T_))) - 1;
    RZ_CHECK(k >= 0 && k < T_, "a loss was observed at t = {}, which is none of {} timesteps", t, T_);
    auto& kept = losses_[static_cast<size_t>(k)];
    if (static_cast<int64_t>(kept.size()) == history_) kept.erase(kept.begin());
    kept.push_back(loss);
  }
  refresh();
}

std::vector<double> LossAwareTime::state() const {
  std::vector<double> out;
  for (const auto& kept : losses_) {
    out.push_back(static_cast<double>(kept.size()));
    out.insert(out.end(), kept.begin(), kept.end());
    out.insert(out.end(), static_cast<size_t>(history_) - kept.size(), 0.0);
  }
  return out;
}

void LossAwareTime::restore(std::span<const double> state) {
  const auto row = static_cast<size_t>(history_) + 1;
  RZ_CHECK(state.size() == losses_.size() * row, "a loss history of {} numbers does not fit {} timesteps with {} losses each", state.size(),
           T_, history_);
  for (size_t k = 0; k < losses_.size(); ++k) {
    const double count = state[k * row];
    RZ_CHECK(count >= 0 && count <= static_cast<double>(history_), "timestep {} has a history of {} losses, at most {} fit", k, count,
             history_);
    const auto first = state.begin() + static_cast<std::ptrdiff_t>(k * row + 1);
    losses_[k].assign(first, first + static_cast<std::ptrdiff_t>(count));
  }
  refresh();
}

}  // namespace rz::models::diffusion
