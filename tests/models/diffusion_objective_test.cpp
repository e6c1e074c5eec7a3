// Losses against their expectations in closed-form worlds, the variational bound against an identity, and draws that depend on the
// sample alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "models/diffusion/objective.h"
#include "models/diffusion/state.h"
#include "models/diffusion/variational.h"
#include "runtime/autograd/engine.h"
#include "runtime/ops/ops.h"
#include "tests/support/gradcheck.h"

namespace rz::models::diffusion {
namespace {

const Network kZero = [](const Tensor& x, const Tensor&, const Conditioning&) { return Tensor::zeros(x.shape(), x.dtype()); };

Tensor gaussian_data(int64_t samples, int64_t dims, double mean, double std, uint64_t seed = 1) {
  return ops::shift(scaled(std, keyed_normal({samples, dims}, {seed, 0}, "data", 0)), mean);
}

// Fashion-MNIST in [-1, 1].
constexpr double kFashionMean = -0.4279188, kFashionStd = 0.7060485;

Process with_target(const char* preset, Target target) {
  Process p = make_preset(preset);
  p.parametrization.target = target;
  return p;
}

TEST(DiffusionLoss, OfAnUntrainedNetwork) {
  EXPECT_NEAR(initial_loss(make_preset("ddpm"), kFashionMean, kFashionStd), 1, 1e-12);
  EXPECT_NEAR(initial_loss(with_target("ddpm", Target::x0), kFashionMean, kFashionStd), 0.68162, 5e-6);
  for (const char* flow : {"flow", "rectified_flow", "sd3_flow"})
    EXPECT_NEAR(initial_loss(make_preset(flow), kFashionMean, kFashionStd), 1.68162, 5e-6);
  for (const double sd : {0.5, 0.706}) {
    PresetOptions options;
    options.sigma_data = sd;
    EXPECT_NEAR(initial_loss(make_preset("edm", options), 0, sd), 1, 1e-12);
  }
  // The objective's own loss is that, up to the noise of the batch: a loss per sample has standard deviation about 1/10 here.
  const Tensor x0 = gaussian_data(400, 200, kFashionMean, kFashionStd);
  for (const char* name : {"ddpm", "flow", "rectified_flow", "edm", "vp_sde", "subvp_sde", "ve_sde", "ncsn"}) {
    const Process p = make_preset(name);
    const LossResult r = Objective(p).loss(kZero, x0, {}, {5, 1, 0}, 1.0 / 400);
    EXPECT_NEAR(r.sum / 400, initial_loss(p, kFashionMean, kFashionStd), 0.06) << name;
    EXPECT_NEAR(r.loss.item(), r.sum / 400, 1e-4) << name;
  }
}

TEST(DiffusionLoss, OfThePerfectDenoiser) {
  EXPECT_NEAR(bayes_loss(make_preset("ddpm"), 0.6), .197526315, 1e-9);
  EXPECT_NEAR(bayes_loss(make_preset("iddpm"), 0.6), .369628297, 1e-9);
  EXPECT_NEAR(bayes_loss(make_preset("edm"), 0.6), 1.141191072, 1e-9);
  // The integral of c^2 / (c^2 (1 - t)^2 + t^2) over [0, 1] is c pi / 2.
  EXPECT_NEAR(bayes_loss(make_preset("flow"), 0.6), 0.6 * std::numbers::pi / 2, 1e-12);
}

// A network that knows N(mean, std^2): what it must output for each target follows from D. Its loss is the Bayes loss, and nothing
// that adds to its output does better.
TEST(DiffusionLoss, BayesLossIsReachedWithEveryTarget) {
  constexpr double kStd = 0.6;
  const Tensor x0 = gaussian_data(600, 100, 0, kStd);
  for (const char* name : {"ddpm", "flow", "edm", "subvp_sde"}) {
    for (const Target target : {Target::x0, Target::eps, Target::v, Target::flow, Target::edm}) {
      Process p = with_target(name, target);
      p.times = std::make_shared<UniformTime>(0.2, 0.8);
      const auto network = [&](double bias) {
        return [&, bias](const Tensor& x, const Tensor&, const Conditioning&) {
          Tensor out = Tensor::zeros(x.shape());
          for (int64_t b = 0; b < x.size(0); ++b) {
            const double t = p.times->draw({5, 1, static_cast<uint64_t>(b)}).t;
            const Precond pre = precond(p.parametrization, *p.path, t);
            const double gain = gaussian_gain(p.path->at(t), kStd);
            for (int64_t i = 0; i < x.size(1); ++i) {
              const double x_t = static_cast<double>(x.data<float>()[b * x.size(1) + i]) / pre.c_in;
              out.data<float>()[b * x.size(1) + i] = static_cast<float>((gain * x_t - pre.c_skip * x_t) / pre.c_out + bias);
            }
          }
          return out;
        };
      };
      const auto loss = [&](double bias) { return Objective(p).loss(network(bias), x0, {}, {5, 1, 0}, 1).sum / 600; };
      const double best = bayes_loss(p, kStd);
      EXPECT_NEAR(loss(0), best, 0.03 * best) << name << " " << diffusion::name(target);
      // 0.1^2, and what is left of 2 * 0.1 * mean(error) over 60,000 numbers.
      EXPECT_NEAR(loss(0.1) - loss(0), 0.01, 5 * 0.2 * std::sqrt(best / 60000)) << name << " " << diffusion::name(target);
    }
  }
}

TEST(DiffusionLoss, WeightsAreThoseOfTheDenoiser) {
  // w(t) |D - x0|^2 in every target's own terms.
  for (const Target target : {Target::x0, Target::eps, Target::v, Target::edm}) {
    Process p = with_target("vp_sde", target);
    for (const double t : {0.1, 0.7}) {
      const Coef c = p.path->at(t);
      const double c_out = precond(p.parametrization, *p.path, t).c_out;
      const auto weight = [&](Weight w) {
        p.weight = w;
        return loss_weight(p, t) / (c_out * c_out);
      };
      EXPECT_NEAR(weight(Weight::x0), 1, 1e-12);
      EXPECT_NEAR(weight(Weight::snr), std::pow(c.a / c.s, 2), 1e-9);
      EXPECT_NEAR(weight(Weight::target), 1 / (c_out * c_out), 1e-9);
      EXPECT_NEAR(weight(Weight::likelihood) / ((0.1 + 19.9 * t) * std::pow(c.a / (c.s * c.s), 2)), 1, 1e-9);
    }
  }
  // EDM's lambda is its target's own weight.
  const Process edm = make_preset("edm");
  const double sigma = edm.path->at(0.01).s;
  EXPECT_NEAR(1 / std::pow(precond(edm.parametrization, *edm.path, 0.01).c_out, 2), (sigma * sigma + 0.25) / std::pow(sigma * 0.5, 2),
              1e-9);
}

// The draws of a sample do not depend on who makes them, and parts of a batch add up to the whole.
TEST(DiffusionLoss, PartsOfABatchMakeTheWhole) {
  const Tensor x0 = gaussian_data(7, 12, 0.1, 0.6);
  for (const char* name : {"ddpm", "edm", "sd3_flow", "ncsn"}) {
    const Objective objective(make_preset(name));
    std::vector<float> seen;
    const Network network = [&](const Tensor& x, const Tensor& noise, const Conditioning&) {
      for (const float v : x.to_vector<float>()) seen.push_back(v);
      for (const float v : noise.to_vector<float>()) seen.push_back(v);
      return ops::scale(x, 0.5);
    };
    const auto run = [&](const std::vector<int64_t>& parts) {
      std::vector<double> losses, times;
      int64_t first = 0;
      for (const int64_t count : parts) {
        const Tensor part = ops::contiguous(ops::slice(x0, 0, first, first + count));
        const LossResult r = objective.loss(network, part, {}, {3, 9, static_cast<uint64_t>(first)}, 1.0 / 7);
        losses.insert(losses.end(), r.sample_losses.begin(), r.sample_losses.end());
        times.insert(times.end(), r.times.begin(), r.times.end());
        first += count;
      }
      losses.insert(losses.end(), times.begin(), times.end());
      return losses;
    };
    const auto whole = run({7});
    EXPECT_EQ(run({3, 4}), whole) << name;
    EXPECT_EQ(run({2, 0, 4, 1}), whole) << name;
    // Another step draws other times and noise.
    EXPECT_NE(objective.loss(network, x0, {}, {3, 10, 0}, 1).sample_losses, objective.loss(network, x0, {}, {3, 9, 0}, 1).sample_losses)
        << name;
  }
}

TEST(DiffusionLoss, GradientsAndImportanceWeights) {
  Process p = make_preset("flow");
  const Tensor x0 = test::random_tensor({3, 4}, 2);
  test::expect_gradients_match(
      [&](const std::vector<Tensor>& in) {
        const Network network = [&](const Tensor& x, const Tensor& noise, const Conditioning&) {
          return ops::add(ops::mul(in[0], x), ops::reshape(noise, {3, 1}));
        };
        return Objective(p).loss(network, x0, {}, {1, 1, 0}, 0.25).loss;
      },
      {test::random_tensor({4}, 3)});
  // Importance weights multiply the loss but not what the history gets.
  Process aware = make_preset("ddpm", {.timesteps = 4});
  const auto times = std::make_shared<LossAwareTime>(4, 1, 0.2);
  times->update(std::vector<LossAwareTime::Observation>{{0.25, 1}, {0.5, 1}, {0.75, 1}, {1, 5}});
  aware.times = times;
  const LossResult r = Objective(aware).loss(kZero, x0, {}, {1, 1, 0}, 1);
  double expected = 0;
  for (size_t b = 0; b < 3; ++b) expected += times->draw({1, 1, b}).weight * r.sample_losses[b];
  EXPECT_NEAR(r.sum, expected, 1e-12);
  EXPECT_NEAR(r.loss.item(), expected, 1e-12);
}

// A dry run counts the bytes of the real one.
TEST(DiffusionLoss, DryRunsCountTheSameBytes) {
  const auto peak = [](const std::shared_ptr<RankContext>& context) {
    RankContextScope scope(context);
    Tensor weight = Tensor::zeros({8});
    autograd::set_requires_grad(weight, true);
    const Network network = [&](const Tensor& x, const Tensor&, const Conditioning&) { return ops::mul(ops::concat({x, x}, -1), weight); };
    const Tensor x0 = Tensor::zeros({6, 5, 4});
    const LossResult r = Objective(make_preset("iddpm", {.timesteps = 3})).loss(network, x0, {}, {1, 1, 0}, 1);
    // Three timesteps: some of the six samples are at the last, which takes the decoder.
    EXPECT_NE(std::find_if(r.times.begin(), r.times.end(), [](double t) { return t < 0.5; }), r.times.end());
    autograd::backward(r.loss);
    return context->memory().peak().total;
  };
  EXPECT_EQ(peak(RankContext::make_dry(0)), peak(RankContext::make(0)));
}

// With exact Gaussian reverse kernels the expected bound is tight up to the prior: prior KL + sum of KLs + decoder = entropy + KL(q(x_T) ||
// N(0, 1)).
TEST(DiffusionBound, IsTightForExactReverseKernels) {
  constexpr double m = 0.25, v = 0.36;
  for (const auto& betas : {linear_betas(1000), cosine_betas(50)}) {
    const DiscreteBetas path("chain", betas);
    const auto total_variance = [&](const Coef& c) { return c.a * c.a * v + c.s * c.s; };
    const auto data_variance = [&](const Coef& c) { return v * c.s * c.s / total_variance(c); };  // Var[x0 | x_t]
    const int64_t T = path.steps();
    const Coef end = path.at(1);
    // E over x0 of KL(N(a x0, s^2) || N(0, 1)) is KL at the mean plus a^2 v / 2.
    double bound = normal_kl(end.a * m, std::log(end.s * end.s), 0, 0) + 0.5 * end.a * end.a * v;
    for (int64_t k = T - 1; k > 0; --k) {
      const Coef from = path.at(path.time(k)), to = path.at(path.time(k - 1));
      const Posterior q = posterior(from, to);
      const double spread = q.x0_factor * q.x0_factor * data_variance(from);
      // The reverse kernel has the posterior's mean at D and the variance that x0's uncertainty adds.
      bound += normal_kl(0, std::log(q.variance), std::sqrt(spread), std::log(q.variance + spread));
    }
    bound += 0.5 * std::log(2 * std::numbers::pi * std::numbers::e * data_variance(path.at(path.time(0))));
    const double entropy = 0.5 * std::log(2 * std::numbers::pi * std::numbers::e * v);
    EXPECT_NEAR(bound, entropy + normal_kl(end.a * m, std::log(total_variance(end)), 0, 0), 1e-10);
  }
}

// The decoder is a distribution over 256 levels.
TEST(DiffusionBound, DecoderSumsToOne) {
  std::vector<double> levels, means, log_stds;
  for (const double mean : {-1.1, -0.5, 0.003, 0.9}) {
    for (const double log_std : {-4.0, -2.0, 0.0}) {
      for (int k = 0; k < 256; ++k) {
        levels.push_back(2 * k / 255.0 - 1);
        means.push_back(mean);
        log_stds.push_back(log_std);
      }
    }
  }
  const Shape shape{12, 256};
  const Tensor log_p =
      discretized_gaussian_log_likelihood(Tensor::of(shape, levels), Tensor::of(shape, means), Tensor::of(shape, log_stds));
  for (const double sum : ops::sum(ops::exp(log_p), {1}).to_vector<double>()) EXPECT_NEAR(sum, 1, 1e-9);
  // A level takes what the normal has in its bin, to the accuracy of tanh's approximation.
  const auto p = ops::exp(log_p).to_vector<double>();
  const auto cdf = [](double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); };
  const double std = std::exp(-2.0), at = levels[150];
  EXPECT_NEAR(p[256 * 4 + 150], cdf((at + 1 / 255.0 + 0.5) / std) - cdf((at - 1 / 255.0 + 0.5) / std), 1e-4);
}

TEST(DiffusionBound, TermsOfALearnedRange) {
  const DiscreteBetas path("linear", linear_betas(1000));
  const Tensor x0 = test::random_tensor({4, 6}, 1), denoised = test::random_tensor({4, 6}, 2), v = test::random_tensor({4, 6}, 3);
  const std::vector<double> times = {path.time(0), path.time(1), path.time(500), path.time(999)};
  const auto bits = variational_terms(path, times, x0, denoised, v).to_vector<double>();
  const auto at = [](const Tensor& t, int64_t b, int64_t i) { return t.data<double>()[b * 6 + i]; };
  for (int64_t b = 1; b < 4; ++b) {
    const int64_t k = static_cast<int64_t>(std::nearbyint(times[static_cast<size_t>(b)] * 1000)) - 1;
    const double beta = path.betas()[static_cast<size_t>(k)], ab = path.alpha_bar(k), before = path.alpha_bar(k - 1);
    const double small = std::log(beta * (1 - before) / (1 - ab)), large = std::log(beta), factor = std::sqrt(before) * beta / (1 - ab);
    double expected = 0;
    for (int64_t i = 0; i < 6; ++i) {
      const double part = 0.5 * (at(v, b, i) + 1);
      expected +=
          normal_kl(factor * at(x0, b, i), small, factor * at(denoised, b, i), part * large + (1 - part) * small) / 6 / std::numbers::ln2;
    }
    EXPECT_NEAR(bits[static_cast<size_t>(b)], expected, 1e-8 * expected) << b;
  }
  // t = 0 is the decoder, with the clipped posterior variance as smallest.
  const LogVariances first = log_variances(path, path.time(1), path.time(0), 0);
  EXPECT_NEAR(first.smallest, std::log(path.betas()[1] * 1e-4 / (1 - path.alpha_bar(1))), 1e-9);
  EXPECT_NEAR(first.largest, std::log(1e-4), 1e-9);
  const Tensor log_std =
      ops::scale(ops::shift(ops::scale(v, 0.5 * (first.largest - first.smallest)), 0.5 * (first.largest + first.smallest)), 0.5);
  const auto decoder = mean_per_sample(discretized_gaussian_log_likelihood(x0, denoised, log_std)).to_vector<double>();
  EXPECT_NEAR(bits[0], -decoder[0] / std::numbers::ln2, 1e-10);
  // The decoder's floor at 1e-12 has no gradient, so the check gives sample 0 a denoised value near its data.
  const Tensor near = ops::add(x0, ops::scale(denoised, 0.01));
  test::expect_gradients_match([&](const std::vector<Tensor>& in) { return variational_terms(path, times, x0, in[0], in[1]); }, {near, v},
                               {.tolerance = 1e-4});
}

// L_hybrid = L_simple + T/1000 L_t, the bound's gradient kept from the mean; the bound alone trains both.
TEST(DiffusionBound, HybridLossKeepsTheBoundFromTheMean) {
  Process p = make_preset("iddpm", {.timesteps = 40});
  EXPECT_EQ(p.vlb->factor, 0.04);
  const Tensor x0 = test::random_tensor({5, 3, 2}, 1);
  const auto gradient = [&](const Process& process) {
    Tensor F = test::random_tensor({5, 3, 4}, 2);
    autograd::set_requires_grad(F, true);
    const Network network = [&](const Tensor&, const Tensor&, const Conditioning&) { return F; };
    const LossResult r = Objective(process).loss(network, x0, {}, {1, 1, 0}, 1);
    return std::pair(r, autograd::grad({r.loss}, {F}).front().to_vector<double>());
  };
  Process simple = p;
  simple.vlb.reset();
  Tensor F = ops::contiguous(ops::slice(test::random_tensor({5, 3, 4}, 2), 2, 0, 2));
  autograd::set_requires_grad(F, true);
  const LossResult plain =
      Objective(simple).loss([&](const Tensor&, const Tensor&, const Conditioning&) { return F; }, x0, {}, {1, 1, 0}, 1);
  const auto plain_gradient = autograd::grad({plain.loss}, {F}).front().to_vector<double>();
  const auto [hybrid, hybrid_gradient] = gradient(p);
  for (size_t row = 0; row < 15; ++row) {
    EXPECT_DOUBLE_EQ(hybrid_gradient[4 * row], plain_gradient[2 * row]);
    EXPECT_NE(hybrid_gradient[4 * row + 2], 0);
  }
  p.vlb->alone = true;
  p.vlb->factor = 1;
  const auto [alone, alone_gradient] = gradient(p);
  EXPECT_NEAR(hybrid.sum, plain.sum + 0.04 * alone.sum, 1e-10 * std::abs(hybrid.sum));
  EXPECT_NE(alone_gradient[0], 0);
  EXPECT_NE(alone_gradient[0], plain_gradient[0]);
}

// In a Gaussian world the terms of the bound are known: with fixed variances the KL has the exact denoiser's error in it.
TEST(DiffusionBound, OfAGaussianWorld) {
  const auto path = std::make_shared<DiscreteBetas>("linear", linear_betas(1000));
  constexpr int64_t kDims = 40000;
  constexpr double kVariance = 0.36;
  const GaussianDenoiser denoiser(path, 0, 0.6);
  const Tensor x0 = gaussian_data(2, kDims, 0, 0.6);
  const Grid grid = make_grid({.kind = GridKind::linspace}, *path, 20);
  const Bound bound = variational_bound(denoiser, *path, grid, Variance::fixed_large, x0, {}, {4, 0});
  ASSERT_EQ(bound.terms.size(), 20u);
  for (size_t b = 0; b < 2; ++b) {
    double total = bound.prior[b];
    for (size_t i = 0; i < 20; ++i) {
      total += bound.terms[i][b];
      if (i == 19) break;
      const Coef from = path->at(grid[i]), to = path->at(grid[i + 1]);
      const Posterior q = posterior(from, to);
      const double error = kVariance * from.s * from.s / (from.a * from.a * kVariance + from.s * from.s);
      const double expected = normal_kl(0, std::log(q.variance), q.x0_factor * std::sqrt(error), std::log(transition(to, from).variance));
      EXPECT_NEAR(bound.terms[i][b] * std::numbers::ln2, expected, 5 * expected * std::sqrt(2.0 / kDims)) << i;
    }
    EXPECT_NEAR(bound.total[b], total, 1e-9);
    const Coef end = path->at(1);
    EXPECT_NEAR(bound.prior[b] * std::numbers::ln2, normal_kl(0, std::log(end.s * end.s), end.a * 0.6, 0), 1e-6);
  }
  EXPECT_THROW(variational_bound(denoiser, *path, grid, Variance::learned, x0, {}, {4, 0}), ConfigError);
}

TEST(DiffusionLabels, AreDroppedBySample) {
  const Tensor labels = constant_labels(1000, 4);
  const auto whole = drop_labels(labels, 0.1, 10, {2, 5, 0}).to_vector<int32_t>();
  const auto part = drop_labels(constant_labels(300, 4), 0.1, 10, {2, 5, 200}).to_vector<int32_t>();
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 200));
  const auto dropped = std::count(whole.begin(), whole.end(), 10);
  EXPECT_NEAR(static_cast<double>(dropped), 100, 5 * std::sqrt(90.0));
  EXPECT_EQ(std::count(whole.begin(), whole.end(), 4), 1000 - dropped);
  EXPECT_THROW(drop_labels(labels, 1.5, 10, {}), ConfigError);
}

}  // namespace
}  // namespace rz::models::diffusion
