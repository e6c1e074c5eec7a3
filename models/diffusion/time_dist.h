// At which times a network is trained. A distribution is its quantile function; a draw is the quantile of a uniform number keyed by
// (seed, step, global sample index), so that times do not depend on ranks or batches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/diffusion/path.h"
#include "models/sample_key.h"

namespace rz::models::diffusion {

// Quantile of the standard normal distribution, u in (0, 1), to double precision.
double normal_quantile(double u);

// A time, and the weight of its loss: 1 except for importance sampling, where it is (wanted density) / (density drawn from).
struct TimeDraw {
  double t = 0;
  double weight = 1;
};

class TimeDist {
 public:
  virtual ~TimeDist() = default;
  // The time below which a part u in (0, 1) of all draws lies.
  virtual double quantile(double u) const = 0;
  // The time of global sample key.first_sample at step key.step.
  virtual TimeDraw draw(const SampleKey& key) const;
  // The mean of f over times that training wants, that is with importance weights undone; tanh-sinh quadrature unless discrete.
  virtual double expect(const std::function<double(double t)>& f) const;

 protected:
  static double uniform(const SampleKey& key);  // in (0, 1)
};

// (k + 1) / T, k uniform in 0 .. T-1 (Ho et al. 2020, algorithm 1).
class UniformIndex final : public TimeDist {
 public:
  explicit UniformIndex(int64_t T);
  double quantile(double u) const override;
  double expect(const std::function<double(double)>& f) const override;

 private:
  int64_t T_;
};

class UniformTime final : public TimeDist {
 public:
  explicit UniformTime(double low = 0, double high = 1);
  double quantile(double u) const override { return low_ + (high_ - low_) * u; }

 private:
  double low_, high_;
};

// Always the same time: one-step distillation trains at t = 1.
class FixedTime final : public TimeDist {
 public:
  explicit FixedTime(double t) : t_(t) {}
  double quantile(double) const override { return t_; }

 private:
  double t_;
};

// t = k u / (1 + (k - 1) u), u = sigmoid(N(mean, std^2)), k = shift. Esser et al., "Scaling rectified flow Transformers", 2024.
class LogitNormalTime final : public TimeDist {
 public:
  explicit LogitNormalTime(double mean = 0, double std = 1, double shift = 1);
  double quantile(double u) const override;

 private:
  double mean_, std_, shift_;
};

// ln sigma ~ N(mean, std^2), cut off at the path's largest sigma. Karras et al. 2022, table 1.
class LogNormalSigma final : public TimeDist {
 public:
  LogNormalSigma(PathPtr path, double mean = -1.2, double std = 1.2);
  double quantile(double u) const override;

 private:
  PathPtr path_;
  double mean_, std_;
};

// ln sigma uniform.
class LogUniformSigma final : public TimeDist {
 public:
  LogUniformSigma(PathPtr path, double sigma_min, double sigma_max);
  double quantile(double u) const override;

 private:
  PathPtr path_;
  double sigma_min_, sigma_max_;
};

// `base`, spread evenly over each global batch: sample i of B takes the quantile of ((u + i) / B mod 1), u one number per step.
class StratifiedTime final : public TimeDist {
 public:
  StratifiedTime(std::shared_ptr<const TimeDist> base, int64_t global_batch);
  double quantile(double u) const override { return base_->quantile(u); }
  TimeDraw draw(const SampleKey& key) const override;
  double expect(const std::function<double(double)>& f) const override { return base_->expect(f); }

 private:
  std::shared_ptr<const TimeDist> base_;
  int64_t global_batch_;
};

// Index k with probability proportional to sqrt(mean of the last `history` squared losses at k), mixed with `floor` of the uniform
// distribution; uniform until every index has a full history (Nichol & Dhariwal 2021, section 3.3).
// What it draws depends on the losses seen: every rank must call update() with the same losses in the same order, those of all ranks.
class LossAwareTime final : public TimeDist {
 public:
  explicit LossAwareTime(int64_t T, int64_t history = 10, double floor = 0.001);
  double quantile(double u) const override;
  TimeDraw draw(const SampleKey& key) const override;
  double expect(const std::function<double(double)>& f) const override;

  struct Observation {
    double t = 0;
    double loss = 0;  // before the weight
  };
  void update(std::span<const Observation> observations);
  // Probabilities of the indices.
  const std::vector<double>& probabilities() const { return probabilities_; }

  // The history as plain numbers, for checkpoints: T * (1 + history) of them.
  std::vector<double> state() const;
  // rz::Error when the size does not fit.
  void restore(std::span<const double> state);

 private:
  int64_t pick(double u) const;
  void refresh();

  int64_t T_, history_;
  double floor_;
  std::vector<std::vector<double>> losses_;  // oldest first
  std::vector<double> probabilities_;
  std::vector<double> cumulative_;
};

}  // namespace rz::models::diffusion
