// Denoisers and what is built on them: guidance, clamping, conversion between paths, finite data sets, likelihoods, reflow.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "models/diffusion/classifier.h"
#include "models/diffusion/likelihood.h"
#include "models/diffusion/objective.h"
#include "models/diffusion/reflow.h"
#include "models/diffusion/state.h"
#include "runtime/core/random.h"
#include "runtime/ops/ops.h"
#include "runtime/ops/softmax.h"
#include "tests/ops/compare.h"
#include "tests/support/config_error.h"

namespace rz::models::diffusion {
namespace {

using ::testing::HasSubstr;

using test::config_error;
using test::largest_difference;

// A made-up conditional network.
Tensor made_up(const Tensor& x, const Tensor& noise, const Conditioning& c) {
  const auto labels = c.labels.to_vector<int32_t>();
  Tensor out = ops::tanh(ops::add(ops::scale(x, 1.7), ops::reshape(noise, {x.size(0), 1})));
  std::vector<float> shifts;
  for (const int32_t label : labels) shifts.push_back(0.3f * static_cast<float>(label));
  return ops::add(out, Tensor::of<float>({x.size(0), 1}, shifts));
}

TEST(DiffusionGuidance, WeightsZeroAndOneAreBitwiseTheNetworksOwn) {
  const auto path = std::make_shared<VpLinear>();
  const auto network = std::make_shared<NetworkDenoiser>(made_up, path, Parametrization{Target::eps, NoiseInput::time});
  const Tensor x = keyed_normal({4, 6}, {1, 0}, "x", 0);
  const Conditioning labels{Tensor::of<int32_t>({4}, {0, 1, 2, 1})}, none{constant_labels(4, 3)};
  const auto guided = [&](double w, const Conditioning& c) {
    return GuidedDenoiser(network, w, 3).predict(x, 0.6, c).x0.to_vector<float>();
  };
  const auto with = network->predict(x, 0.6, labels).x0.to_vector<float>(), without = network->predict(x, 0.6, none).x0.to_vector<float>();
  EXPECT_EQ(guided(0, labels), without);
  EXPECT_EQ(guided(1, labels), with);
  EXPECT_EQ(guided(2.5, {}), without);
  const auto strong = guided(2.5, labels);
  for (size_t i = 0; i < with.size(); ++i) EXPECT_NEAR(strong[i], without[i] + 2.5f * (with[i] - without[i]), 1e-5f);
  EXPECT_NE(strong, with);
}

// Two Gaussian classes of one standard deviation: the unconditional denoiser plus the gradient of the exact log p(y | x_t) is the
// denoiser of the class, on any path.
TEST(DiffusionGuidance, ClassifierGuidanceIsExactForGaussianClasses) {
  const std::vector<Component> classes = {{0.3, {-0.7, 0.2}, 0.4, 0}, {0.7, {0.5, -0.1}, 0.4, 1}};
  for (const PathPtr& path :
       {PathPtr(std::make_shared<VpLinear>()), PathPtr(std::make_shared<RectFlow>()), PathPtr(std::make_shared<EdmIdentity>())}) {
    const auto mixture = std::make_shared<MixtureDenoiser>(path, classes);
    const Tensor x = scaled(0.8, keyed_normal({6, 2}, {2, 0}, "x", 0, DType::f64));
    const Conditioning labels{Tensor::of<int32_t>({6}, {0, 1, 0, 1, 1, 0})};
    for (const double t : {0.015, 0.3}) {
      const Coef c = path->at(t);
      const LogLikelihood exact = [&](const Tensor& x_t, const Tensor&, const Conditioning& given) {
        std::vector<Tensor> logits;
        for (const Component& k : classes) {
          const Tensor gap = ops::sub(x_t, Tensor::of<double>({1, 2}, {c.a * k.mean[0], c.a * k.mean[1]}));
          logits.push_back(
              ops::shift(ops::scale(ops::sum(ops::square(gap), {1}), -0.5 / (c.a * c.a * 0.16 + c.s * c.s)), std::log(k.weight)));
        }
        return ops::reshape(ops::gather(ops::log_softmax(ops::stack(logits, 1)), 1, given.labels.view_reshape({6, 1})), {6});
      };
      // Guidance weight 0: the inner denoiser is not told the label.
      const ClassifierGuidedDenoiser guided(std::make_shared<GuidedDenoiser>(mixture, 0, 2), exact, path, NoiseInput::time, 1);
      EXPECT_LT(largest_difference(guided.predict(x, t, labels).x0, mixture->predict(x, t, labels).x0), 1e-11) << path->name();
      EXPECT_GT(largest_difference(mixture->predict(x, t, {}).x0, mixture->predict(x, t, labels).x0), 1e-3) << path->name();
    }
  }
}

TEST(DiffusionGuidance, ByTheClassifierNetwork) {
  ClassifierConfig config;
  config.image = {8, 8, 1};
  config.classes = 3;
  config.width1 = config.width2 = config.features = 8;
  config.noise_levels = true;
  Classifier classifier(config);
  classifier.materialize(4);
  const auto path = std::make_shared<VpLinear>();
  const Tensor x = keyed_normal({3, 8, 8, 1}, {1, 0}, "x", 0);
  const Conditioning labels{Tensor::of<int32_t>({3}, {2, 0, 1})};
  const LogLikelihood log_p = log_likelihood_of(classifier);
  const auto likelihood = [&](const Tensor& at) { return log_p(at, Tensor::full({3}, 0.5), labels).to_vector<double>(); };
  const auto inner = std::make_shared<GaussianDenoiser>(path, 0, 0.6);
  const Tensor plain = inner->predict(x, 0.5, labels).x0;
  const Tensor guided = ClassifierGuidedDenoiser(inner, log_p, path, NoiseInput::time, 1).predict(x, 0.5, labels).x0;
  // The shift is s^2 / a times the gradient: a step along it raises the log-likelihood at the gradient's own rate.
  const Coef c = path->at(0.5);
  const Tensor gradient = scaled(c.a / (c.s * c.s), ops::sub(guided, plain));
  const auto squares = ops::sum(ops::square(gradient), {1, 2, 3}).to_vector<double>();
  const auto up = likelihood(combine(1, x, 0.005, gradient)), down = likelihood(combine(1, x, -0.005, gradient));
  for (size_t b = 0; b < 3; ++b) EXPECT_NEAR((up[b] - down[b]) / 0.01, squares[b], 0.03 * squares[b]);
}

TEST(DiffusionDenoiser, EveryTargetOfOneNetworkSamplesAlike) {
  // A network that knows the data N(0.25, 0.36), asked in each target's terms, is one denoiser.
  const GaussianDenoiser exact(std::make_shared<VpLinear>(), 0.25, 0.6);
  const auto path = std::make_shared<VpLinear>();
  const Tensor x = keyed_normal({3, 5}, {1, 0}, "x", 0, DType::f64);
  for (const Target target : {Target::x0, Target::eps, Target::v, Target::flow, Target::score, Target::edm}) {
    for (const double t : {0.01, 0.4, 0.99}) {
      const Coef c = path->at(t);
      const Mixture m = mixture(target, c, 0.5);
      const Parametrization p{target, NoiseInput::time_999, 0.5, true};
      const Network network = [&](const Tensor& input, const Tensor& noise, const Conditioning&) {
        EXPECT_NEAR(noise.to_vector<double>()[0], 999 * t, 1e-9);
        EXPECT_NEAR(input.to_vector<double>()[0], x.to_vector<double>()[0] / std::sqrt(c.a * c.a * 0.25 + c.s * c.s), 1e-12);
        const Tensor x0 = exact.predict(x, t, {}).x0;
        return combine(m.x0_factor, x0, m.eps_factor, combine(1 / c.s, x, -c.a / c.s, x0));
      };
      EXPECT_LT(largest_difference(NetworkDenoiser(network, path, p).predict(x, t, {}).x0, exact.predict(x, t, {}).x0), 1e-11)
          << name(target) << " " << t;
    }
  }
}

// Converted to another path the exact denoiser is the exact denoiser of that path.
TEST(DiffusionDenoiser, ConvertsBetweenPaths) {
  const std::vector<PathPtr> paths = {std::make_shared<VpLinear>(), std::make_shared<RectFlow>(), std::make_shared<EdmIdentity>(),
                                      std::make_shared<Trig>(), std::make_shared<DiscreteBetas>("cosine", cosine_betas(1000))};
  const Tensor x = keyed_normal({3, 5}, {1, 0}, "x", 0, DType::f64);
  for (const PathPtr& from : paths)
    for (const PathPtr& to : paths) {
      const ConvertedDenoiser converted(std::make_shared<GaussianDenoiser>(from, 0.25, 0.6), from, to);
      EXPECT_LT(largest_difference(converted.predict(x, 0.4, {}).x0, GaussianDenoiser(to, 0.25, 0.6).predict(x, 0.4, {}).x0), 1e-11)
          << from->name() << " to " << to->name();
    }
  const auto ve = std::make_shared<VeGeometric>(0.01, 50);
  const ConvertedDenoiser beyond(std::make_shared<GaussianDenoiser>(ve, 0, 1), ve, paths[2]);
  EXPECT_THAT(config_error([&] { beyond.predict(x, 1, {}); }), HasSubstr("sigma 80 is outside path ve"));
  const ConvertedDenoiser nothing_left(std::make_shared<GaussianDenoiser>(ve, 0, 1), ve, paths[1]);
  EXPECT_THAT(config_error([&] { nothing_left.predict(x, 1, {}); }), HasSubstr("path rect_flow has no data left at t = 1"));
}

TEST(DiffusionDenoiser, ClampingRederivesTheNoiseOrKeepsIt) {
  const auto path = std::make_shared<VpLinear>();
  const auto inner = std::make_shared<GaussianDenoiser>(path, 0, 3);
  const Tensor x = scaled(3, keyed_normal({2, 50}, {1, 0}, "x", 0, DType::f64));
  const double t = 0.2;
  const Coef c = path->at(t);
  const Tensor plain = inner->predict(x, t, {}).x0;
  const auto rederived = ClampedDenoiser(inner, path, -1, 1, true).predict(x, t, {});
  const auto kept = ClampedDenoiser(inner, path, -1, 1, false).predict(x, t, {});
  EXPECT_EQ(largest_difference(rederived.x0, ops::clamp(plain, -1, 1)), 0);
  EXPECT_EQ(largest_difference(kept.x0, rederived.x0), 0);
  EXPECT_GT(largest_difference(plain, kept.x0), 1);
  EXPECT_FALSE(rederived.eps.has_value());
  ASSERT_TRUE(kept.eps.has_value());
  EXPECT_LT(largest_difference(*kept.eps, combine(1 / c.s, x, -c.a / c.s, plain)), 1e-13);
}

// The step's noise with a learned range: its log-variance lies between the posterior's and the forward step's as v says.
TEST(DiffusionDenoiser, LearnedVariancesSetTheNoiseOfAStep) {
  const auto path = std::make_shared<DiscreteBetas>("cosine", cosine_betas(1000));
  const Grid grid = {path->time(600), path->time(500)};
  const Tensor x = keyed_normal({2, 3, 3, 2}, {1, 0}, "x", 0, DType::f64);
  const auto run = [&](double v, Variance variance) {
    const Network network = [v](const Tensor& input, const Tensor&, const Conditioning&) {
      return ops::concat({ops::scale(input, 0.9), Tensor::full(input.shape(), v, DType::f64)}, -1);
    };
    SamplerConfig config;
    config.eta = 1;
    config.variance = variance;
    return sample(NetworkDenoiser(network, path, {Target::eps, NoiseInput::index}, true), *path, grid, config, x, {}, {7, 0});
  };
  EXPECT_LT(largest_difference(run(-1, Variance::learned), run(0, Variance::fixed_small)), 1e-12);
  EXPECT_LT(largest_difference(run(1, Variance::learned), run(0, Variance::fixed_large)), 1e-12);
  const double low = std::log(posterior(path->at(grid[0]), path->at(grid[1])).variance),
               high = std::log(transition(path->at(grid[1]), path->at(grid[0])).variance);
  const Tensor z = keyed_normal(x.shape(), {7, 0}, "diffusion:sampler", 0, DType::f64);
  const double gap = std::exp(0.5 * (0.75 * high + 0.25 * low)) - std::exp(0.5 * low);
  EXPECT_LT(largest_difference(run(0.5, Variance::learned), combine(1, run(-1, Variance::learned), gap, z)), 1e-12);
  SamplerConfig config;
  config.eta = 1;
  config.variance = Variance::learned;
  EXPECT_THAT(config_error([&] { sample(GaussianDenoiser(path, 0, 1), *path, grid, config, x, {}, {}); }),
              HasSubstr("learned range of variances"));
}

// The ideal denoiser of a finite data set takes every sample to one of its points.
TEST(DiffusionDenoiser, OfADataSetLandsOnItsPoints) {
  const Random random(8, "points");
  std::vector<Component> points;
  for (uint64_t k = 0; k < 12; ++k) {
    Component c;
    for (uint64_t i = 0; i < 5; ++i) c.mean.push_back(2 * random.uniform64(8 * k + i) - 1);
    c.label = static_cast<int32_t>(k % 2);
    points.push_back(c);
  }
  for (const char* name : {"edm", "ddim", "ddpm", "rectified_flow", "vp_sde", "ve_sde"}) {
    const Process p = make_preset(name);
    const Grid grid = make_grid(p.grid, *p.path, std::min<int64_t>(p.steps, 200));
    const MixtureDenoiser denoiser(p.path, points);
    const SampleRows rows{6, 0};
    const Tensor start = start_state(p.sampler, *p.path, grid, {40, 5}, rows);
    const auto x = sample(denoiser, *p.path, grid, p.sampler, start, {constant_labels(40, 1)}, rows).to_vector<double>();
    std::set<size_t> reached;
    // A denoising last step ends on the data; the SDE's own leaves a little noise.
    const double tolerance = p.sampler.method == Method::euler_maruyama ? 0.05 : 1e-4;
    for (size_t b = 0; b < 40; ++b) {
      double nearest = 1e9;
      size_t which = 0;
      for (size_t k = 0; k < points.size(); ++k) {
        double distance = 0;
        for (size_t i = 0; i < 5; ++i) distance = std::max(distance, std::abs(x[5 * b + i] - points[k].mean[i]));
        if (distance < nearest) nearest = distance, which = k;
      }
      EXPECT_LT(nearest, tolerance) << name;
      EXPECT_EQ(which % 2, 1u) << name;  // of the label asked for
      reached.insert(which);
    }
    EXPECT_GE(reached.size(), 3u) << name;
  }
}

// Data N(m, c^2): the flow maps x0 affinely to noise, so that its log-density is known.
TEST(DiffusionLikelihood, OfAGaussian) {
  const Tensor x0 = ops::shift(scaled(0.6, keyed_normal({3, 4}, {1, 0}, "x0", 0, DType::f64)), 0.25);
  for (const PathPtr& path :
       {PathPtr(std::make_shared<VpLinear>()), PathPtr(std::make_shared<EdmIdentity>()), PathPtr(std::make_shared<RectFlow>()),
        PathPtr(std::make_shared<DiscreteBetas>("linear", linear_betas(1000)))}) {
    const GaussianDenoiser denoiser(path, 0.25, 0.6);
    LikelihoodConfig config;
    config.steps = 200;
    config.probe = Probe::exact;
    const auto exact = log_likelihood(denoiser, *path, x0, {}, config, {});
    const double low = path->t_min() > 0 ? path->at(path->t_min()).sigma() : 0.002,
                 high = std::isfinite(path->at(1).sigma()) ? path->at(1).sigma() : 80;
    const double gain = std::sqrt((0.36 + high * high) / (0.36 + low * low)), t = path->t_of_sigma(high);
    const double std = path->prior_std(t) / path->at(t).a;
    for (size_t b = 0; b < 3; ++b) {
      double expected = 0;
      for (int64_t i = 0; i < 4; ++i) {
        const double y = 0.25 + gain * (x0.data<double>()[4 * b + static_cast<size_t>(i)] - 0.25);
        expected += std::log(gain) - 0.5 * (y * y / (std * std) + std::log(2 * std::numbers::pi * std * std));
      }
      EXPECT_NEAR(exact[b], expected, 5e-6) << path->name();
      // Which is nearly that of the data: noise of sigma_min and a prior without the data's mean are the difference.
      double data = 0;
      for (int64_t i = 0; i < 4; ++i)
        data -=
            0.5 * (std::pow((x0.data<double>()[4 * b + static_cast<size_t>(i)] - 0.25) / 0.6, 2) + std::log(2 * std::numbers::pi * 0.36));
      EXPECT_NEAR(exact[b], data, 0.1) << path->name();
    }
    // An isotropic Jacobian: random signs estimate its trace without variance.
    for (const uint64_t seed : {1, 2, 3}) {
      config.probe = Probe::rademacher;
      const auto estimated = log_likelihood(denoiser, *path, x0, {}, config, {seed, 0});
      for (size_t b = 0; b < 3; ++b) EXPECT_NEAR(estimated[b], exact[b], 1e-9);
    }
  }
  EXPECT_NEAR(bits_per_dimension(-784 * std::log(2.0), 784), 1 + std::log2(127.5), 1e-12);
  // A uniform density over [-1 - 1/255, 1 + 1/255] is 8 bits.
  EXPECT_NEAR(bits_per_dimension(-10 * std::log(512.0 / 255), 10), 8, 1e-12);
  const auto path = std::make_shared<EdmIdentity>();
  EXPECT_THROW(log_likelihood(MixtureDenoiser(path, {{1, {0, 0, 0, 0}, 1, 0}}), *path, x0, {}, {}, {}), Error);
}

// Random signs are right on average where the Jacobian is not isotropic, and do not depend on the batch.
TEST(DiffusionLikelihood, RandomSignsEstimateTheTrace) {
  const auto path = std::make_shared<EdmIdentity>(0.1, 10);
  const Tensor mixing = Tensor::of<double>({3, 3}, {0.5, 0.3, 0, 0.1, 0.4, -0.2, 0, 0.2, 0.3});
  const Network network = [&](const Tensor& x, const Tensor&, const Conditioning&) { return ops::tanh(ops::matmul(x, mixing)); };
  const NetworkDenoiser denoiser(network, path, {Target::x0, NoiseInput::quarter_log_sigma});
  const Tensor x0 = keyed_normal({4, 3}, {1, 0}, "x0", 0, DType::f64);
  LikelihoodConfig config;
  config.steps = 10;
  config.probe = Probe::exact;
  const auto exact = log_likelihood(denoiser, *path, x0, {}, config, {});
  config.probe = Probe::rademacher;
  const auto once = log_likelihood(denoiser, *path, x0, {}, config, {1, 0});
  EXPECT_EQ(log_likelihood(denoiser, *path, ops::contiguous(ops::slice(x0, 0, 2, 4)), {}, config, {1, 2})[1], once[3]);
  config.probes = 200;
  const auto many = log_likelihood(denoiser, *path, x0, {}, config, {1, 0});
  double once_error = 0, many_error = 0;
  for (size_t b = 0; b < 4; ++b) once_error += std::abs(once[b] - exact[b]), many_error += std::abs(many[b] - exact[b]);
  EXPECT_GT(once_error, 0.01);
  EXPECT_LT(many_error, 0.25 * once_error);
}

TEST(DiffusionLikelihood, DequantizedLevelsStayInTheirBins) {
  std::vector<float> levels;
  for (int k = 0; k < 256; ++k) levels.push_back(static_cast<float>(2 * k / 255.0 - 1));
  const auto spread = dequantize(Tensor::of<float>({1, 256}, levels), {1, 0}).to_vector<double>();
  double mean = 0;
  for (size_t k = 0; k < 256; ++k) {
    EXPECT_LE(std::abs(spread[k] - static_cast<double>(levels[k])), 1.0001 / 255);
    mean += (spread[k] - static_cast<double>(levels[k])) * 255 / 256;
  }
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(3.0 * 256));
}

// Pairs of a Gaussian flow: the flow learned from them is straight and takes one step.
TEST(DiffusionReflow, IsExactInOneStepOnGaussianPairs) {
  Process p = make_preset("flow");
  p.sampler.method = Method::heun;
  const GaussianDenoiser first(p.path, 0.25, 0.6);
  const Grid grid = make_grid({.kind = GridKind::trailing}, *p.path, 40);
  const SampleRows rows{3, 0};
  const ReflowPairs pairs = reflow_pairs(first, p, grid, {32, 6}, {}, rows);
  // The sampler's map is affine, x0 = mean + gain noise: read it off two elements, check it on all.
  const auto z = pairs.noise.to_vector<double>(), x = pairs.data.to_vector<double>();
  const double gain = (x[1] - x[0]) / (z[1] - z[0]), mean = x[0] - gain * z[0];
  EXPECT_LT(largest_difference(pairs.data, ops::shift(scaled(gain, pairs.noise), mean)), 1e-5);
  // What reflow learns: at (x, t) only one pair passes, with noise = (x - (1 - t) mean) / ((1 - t) gain + t), and F = noise - data.
  const Network learned = [&](const Tensor& x_t, const Tensor& t_B, const Conditioning&) {
    Tensor out = Tensor::empty(x_t.shape());
    for (int64_t i = 0; i < x_t.numel(); ++i) {
      const auto t = static_cast<double>(t_B.data<float>()[i / x_t.size(1)]);
      const double noise = (static_cast<double>(x_t.data<float>()[i]) - (1 - t) * mean) / ((1 - t) * gain + t);
      out.data<float>()[i] = static_cast<float>(noise - (mean + gain * noise));
    }
    return out;
  };
  EXPECT_LT(Objective(p).loss(learned, pairs.data, {}, {1, 1, 0}, 1, pairs.noise).sum / 32, 1e-9);
  EXPECT_GT(Objective(p).loss(learned, pairs.data, {}, {1, 1, 0}, 1).sum / 32, 0.1);  // fresh noise: other pairs
  const NetworkDenoiser second(learned, p.path, p.parametrization);
  p.sampler.method = Method::euler;
  EXPECT_LT(largest_difference(sample(second, *p.path, {1, 0}, p.sampler, pairs.noise, {}, rows), pairs.data), 1e-5);
  EXPECT_GT(largest_difference(sample(first, *p.path, {1, 0}, p.sampler, pairs.noise, {}, rows), pairs.data), 0.5);
  double before = 0, after = 0;
  for (const double s : straightness(first, *p.path, grid, pairs.noise, {})) before += s / 32;
  for (const double s : straightness(second, *p.path, grid, pairs.noise, {})) after += s / 32;
  EXPECT_GT(before, 0.05);
  EXPECT_LT(after, 1e-9);
  // One-step distillation trains at t = 1, where that network's loss on the pairs is zero, too.
  const Process distilled = one_step_distillation(p);
  EXPECT_EQ(distilled.times->draw({1, 1, 1}).t, 1);
  EXPECT_LT(Objective(distilled).loss(learned, pairs.data, {}, {1, 1, 0}, 1, pairs.noise).sum / 32, 1e-9);
  EXPECT_EQ(make_grid(distilled.grid, *distilled.path, distilled.steps), Grid({1, 0}));
  EXPECT_THAT(config_error([&] { reflow_pairs(first, make_preset("ddpm"), {1, 0}, {1, 2}, {}, rows); }), HasSubstr("use a flow"));
}

}  // namespace
}  // namespace rz::models::diffusion
