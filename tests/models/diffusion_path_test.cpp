// Noise schedules, grids, targets and times against published constants and their own definitions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "models/diffusion/grid.h"
#include "models/diffusion/process.h"
#include "models/diffusion/target.h"
#include "models/diffusion/time_dist.h"
#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "tests/support/config_error.h"

namespace rz::models::diffusion {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pointwise;

using test::config_error;

// To the digits that `expected` is given in.
void expect_digits(double value, double expected, double relative = 5e-9) { EXPECT_NEAR(value, expected, relative * std::abs(expected)); }

const std::vector<PathPtr>& all_paths() {
  static const std::vector<PathPtr> paths = {
      std::make_shared<DiscreteBetas>("linear", linear_betas(1000)),
      std::make_shared<DiscreteBetas>("cosine", cosine_betas(1000)),
      std::make_shared<DiscreteBetas>("scaled_linear", scaled_linear_betas(1000)),
      std::make_shared<DiscreteBetas>("sigmoid", sigmoid_betas(1000)),
      std::make_shared<VpLinear>(),
      std::make_shared<VpLinear>(0.1, 20, true),
      std::make_shared<VeGeometric>(0.01, 50),
      std::make_shared<VeGeometric>(0.01, 1, 10),
      std::make_shared<EdmIdentity>(),
      std::make_shared<RectFlow>(),
      std::make_shared<Trig>(),
  };
  return paths;
}

TEST(DiffusionPath, LinearBetasOfDdpm) {
  const DiscreteBetas path("linear", linear_betas(1000));
  expect_digits(path.alpha_bar(0), 0.9999, 1e-15);
  expect_digits(path.alpha_bar(499), 0.0785872429);
  expect_digits(path.alpha_bar(999), 4.03582977e-5);
  // The posterior of equation 7, written out.
  const int64_t k = 487;
  const double ab = path.alpha_bar(k), before = path.alpha_bar(k - 1), beta = path.betas()[k];
  const Posterior q = posterior(path.at(path.time(k)), path.at(path.time(k - 1)));
  expect_digits(q.x0_factor, std::sqrt(before) * beta / (1 - ab), 1e-10);
  expect_digits(q.x_factor, std::sqrt(1 - beta) * (1 - before) / (1 - ab), 1e-12);
  expect_digits(q.variance, beta * (1 - before) / (1 - ab), 1e-10);
  EXPECT_NEAR(q.variance, 0.00979, 1e-5);
  EXPECT_EQ(posterior(path.at(path.time(0)), path.at(0)).variance, 0);
  EXPECT_NEAR(posterior(path.at(path.time(999)), path.at(path.time(998))).variance, 0.02, 1e-6);
}

TEST(DiffusionPath, CosineBetasOfImprovedDdpm) {
  const DiscreteBetas path("cosine", cosine_betas(1000));
  expect_digits(path.betas()[0], 4.12842248e-5);
  expect_digits(path.betas()[499], 3.14588623e-3);
  expect_digits(path.betas()[998], 0.749999393);
  EXPECT_EQ(path.betas()[999], 0.999);
  expect_digits(path.alpha_bar(499), 0.49384359, 2e-8);
  expect_digits(path.alpha_bar(999), 2.42876691e-9);
}

TEST(DiffusionPath, ScoreSdes) {
  const VpLinear vp;
  for (const double t : {1e-5, 0.3, 1.0}) {
    const double log_a = -t * t / 4 * 19.9 - t / 2 * 0.1;
    expect_digits(vp.at(t).a, std::exp(log_a), 1e-14);
    expect_digits(vp.at(t).s, std::sqrt(1 - std::exp(2 * log_a)), 1e-9);
    expect_digits(sde_at(vp, t).diffusion_squared, 0.1 + t * 19.9, 1e-9);
    expect_digits(sde_at(vp, t).drift, -0.5 * (0.1 + t * 19.9), 1e-12);
  }
  expect_digits(vp.at(1).sigma(), 152.166970, 2e-9);
  const VpLinear sub(0.1, 20, true);
  expect_digits(sub.at(0.5).s, 1 - std::exp(2 * (-0.0625 * 19.9 - 0.025)), 1e-12);
  // beta (1 - exp(-2 int beta)): Song et al. 2021, equation 19
  expect_digits(sde_at(sub, 0.5).diffusion_squared, (0.1 + 0.5 * 19.9) * (1 - std::exp(4 * (-0.0625 * 19.9 - 0.025))), 1e-12);
  const VeGeometric ve(0.01, 50);
  expect_digits(ve.at(1).s, 50, 1e-14);
  expect_digits(ve.at(1e-9).s, 0.01, 1e-7);
  expect_digits(std::sqrt(sde_at(ve, 0.5).diffusion_squared), ve.at(0.5).s * std::sqrt(2 * std::log(50 / 0.01)), 1e-13);
  EXPECT_EQ(ve.at(0).s, 0);
}

TEST(DiffusionPath, NoiseLevelsOfNcsn) {
  const VeGeometric ncsn(0.01, 1, 10);
  for (int k = 0; k < 10; ++k) expect_digits(ncsn.at((k + 1) / 10.0).s, 0.01 * std::pow(100, k / 9.0), 1e-13);
}

TEST(DiffusionPath, DerivativesAndInverses) {
  for (const PathPtr& path : all_paths()) {
    for (const double t : {0.11003, 0.43207, 0.93301}) {
      const double h = 1e-6;
      const Coef c = path->at(t), up = path->at(t + h), down = path->at(t - h);
      EXPECT_NEAR(c.da, (up.a - down.a) / (2 * h), 1e-6 * (1 + std::abs(c.da))) << path->name();
      EXPECT_NEAR(c.ds, (up.s - down.s) / (2 * h), 1e-6 * (1 + std::abs(c.ds))) << path->name();
      EXPECT_NEAR(path->t_of_sigma(c.sigma()), t, 1e-12) << path->name();
    }
    EXPECT_EQ(path->at(0).a, 1) << path->name();
    EXPECT_EQ(path->at(0).s, 0) << path->name();
  }
  EXPECT_THAT(config_error([] { VeGeometric(0.01, 50).t_of_sigma(80); }), HasSubstr("sigma 80 is outside path ve"));
  EXPECT_THAT(config_error([] { DiscreteBetas("mine", {0.1, 1.5}); }), HasSubstr("beta 1.5 is not in (0, 1)"));
  EXPECT_THAT(config_error([] { sde_at(RectFlow(), 1); }), HasSubstr("no diffusion equation at t = 1"));
}

// Every target, on random coefficients: F = p x0 + q eps gives x0 back; and the closed forms of the table.
TEST(DiffusionTarget, SixTargetsRoundTrip) {
  const Random random(3, "targets");
  uint64_t at = 0;
  struct Made final : Path {
    Coef c;
    std::string name() const override { return "made"; }
    Coef at(double) const override { return c; }
  };
  for (int i = 0; i < 200; ++i) {
    Made path;
    const auto u = [&] { return 0.1 + random.uniform64(at++); };
    path.c = {u(), u(), -u(), u()};
    const double sd = u(), x0 = u() - 0.6, eps = u() - 0.6;
    const auto [a, s, da, ds] = path.c;
    const double sigma = s / a, r = std::sqrt(sigma * sigma + sd * sd), delta = a * ds - s * da;
    const std::pair<double, double> table[] = {{0, 1},
                                               {1 / a, -s / a},
                                               {a / (a * a + s * s), -s / (a * a + s * s)},
                                               {ds / delta, -s / delta},
                                               {1 / a, s * s / a},
                                               {sd * sd / (r * r) / a, sigma * sd / r}};
    for (const Target target : {Target::x0, Target::eps, Target::v, Target::flow, Target::score, Target::edm}) {
      const Precond p = precond({target, NoiseInput::time, sd}, path, 0.5);
      const Mixture m = mixture(target, path.c, sd);
      const double F = m.x0_factor * x0 + m.eps_factor * eps;
      EXPECT_NEAR(p.c_skip * (a * x0 + s * eps) + p.c_out * F, x0, 4e-15 * (1 + std::abs(p.c_skip) + std::abs(p.c_out * F)))
          << name(target);
      const auto& [c_skip, c_out] = table[static_cast<int>(target)];
      EXPECT_NEAR(p.c_skip, c_skip, 1e-13 * (1 + std::abs(c_skip))) << name(target);
      EXPECT_NEAR(p.c_out, c_out, 1e-13 * (1 + std::abs(c_out))) << name(target);
    }
  }
}

TEST(DiffusionTarget, EdmKeepsVariances) {
  const EdmIdentity path;
  for (const double sigma : {0.002, 0.3, 1.7, 80.0}) {
    for (const double sd : {0.5, 0.706}) {
      const Precond p = precond({Target::edm, NoiseInput::quarter_log_sigma, sd}, path, path.t_of_sigma(sigma));
      EXPECT_NEAR(p.c_in * p.c_in * (sigma * sigma + sd * sd), 1, 1e-14);
      const double lambda = (sigma * sigma + sd * sd) / std::pow(sigma * sd, 2);
      EXPECT_NEAR(lambda * p.c_out * p.c_out, 1, 1e-13);
      EXPECT_NEAR(p.c_noise, std::log(sigma) / 4, 1e-14);
      expect_digits(p.c_skip, sd * sd / (sigma * sigma + sd * sd), 1e-14);
    }
  }
}

TEST(DiffusionTarget, NoiseInputs) {
  const DiscreteBetas path("linear", linear_betas(1000));
  EXPECT_EQ(noise_input(NoiseInput::index, path, path.time(487)), 487);
  EXPECT_EQ(noise_input(NoiseInput::index, path, path.time(0)), 0);
  EXPECT_DOUBLE_EQ(noise_input(NoiseInput::time_999, RectFlow(), 0.25), 249.75);
  EXPECT_DOUBLE_EQ(noise_input(NoiseInput::time_1000, RectFlow(), 0.25), 250);
  EXPECT_DOUBLE_EQ(noise_input(NoiseInput::log_half_sigma, EdmIdentity(), 0.5), std::log(20.0));
  EXPECT_DOUBLE_EQ(noise_input(NoiseInput::sigma, EdmIdentity(), 0.5), 40);
  EXPECT_THAT(config_error([] { noise_input(NoiseInput::index, RectFlow(), 0.5); }), HasSubstr("path rect_flow is continuous"));
}

TEST(DiffusionTarget, ImpossiblePairsAreNamed) {
  for (const Target target : {Target::eps, Target::score})
    EXPECT_THAT(config_error([&] {
                  precond({target, NoiseInput::time}, RectFlow(), 1);
                }),
                HasSubstr(std::string("target ") + name(target) + " does not determine the data at t = 1 of path rect_flow"));
  for (const Target target : {Target::x0, Target::v, Target::flow, Target::edm})
    EXPECT_EQ(test::config_error_if_any([&] { precond({target, NoiseInput::time}, RectFlow(), 1); }), "no error") << name(target);
  EXPECT_THAT(config_error([] { parse_target("noise"); }), HasSubstr("unknown target 'noise'; valid: x0, eps, v, flow, score, edm"));
}

TEST(DiffusionGrid, DiscreteTimes) {
  const DiscreteBetas path("linear", linear_betas(1000));
  const auto indices = [&](const char* grid, int64_t steps) {
    std::vector<int> out;
    for (const double t : make_grid(parse_grid(grid), path, steps)) out.push_back(static_cast<int>(std::nearbyint(t * 1000)) - 1);
    return out;
  };
  EXPECT_THAT(indices("leading", 5), ElementsAre(800, 600, 400, 200, 0, -1));
  EXPECT_THAT(indices("trailing", 5), ElementsAre(999, 799, 599, 399, 199, -1));
  EXPECT_THAT(indices("linspace", 5), ElementsAre(999, 749, 500, 250, 0, -1));
  EXPECT_THAT(indices("quad", 4), ElementsAre(800, 355, 88, 0, -1));
  EXPECT_THAT(indices("leading", 3), ElementsAre(666, 333, 0, -1));
  EXPECT_EQ(indices("leading", 1000), indices("trailing", 1000));
  EXPECT_EQ(indices("leading", 1000), indices("linspace", 1000));
  EXPECT_THAT(config_error([&] { indices("leading", 1001); }), HasSubstr("1001 steps on path linear, which has 1000 times"));
  EXPECT_THAT(config_error([&] { indices("leading", 0); }), HasSubstr("at least one step, not 0"));
  EXPECT_THAT(config_error([&] { indices("quad", 900); }), HasSubstr("twice"));
  EXPECT_THAT(config_error([&] { indices("middle", 9); }), HasSubstr("unknown grid 'middle'; valid: leading, trailing"));
  EXPECT_THAT(config_error([&] { indices("trailing:3", 9); }), HasSubstr("numbers belong to"));
  EXPECT_THAT(config_error([&] { make_grid(parse_grid("leading"), RectFlow(), 9); }), HasSubstr("path rect_flow is continuous"));
}

TEST(DiffusionGrid, Karras) {
  const EdmIdentity path;
  const double published[] = {80,        57.5859847, 40.7855738, 28.3745846, 19.3524530, 12.9100824, 8.4009353,
                              5.3151945, 3.2568215,  1.9233398,  1.0881706,  .5853481,   .2964423,   .1395165,
                              .0599473,  .0229345,   .0075280,   .002,       0};
  const Grid grid = make_grid(parse_grid("karras"), path, 18);
  ASSERT_EQ(grid.size(), 19u);
  for (size_t i = 0; i < grid.size(); ++i) EXPECT_NEAR(path.at(grid[i]).s, published[i], 6e-8) << i;
  // On another path the same sigmas.
  const VpLinear vp;
  const Grid there = make_grid(parse_grid("karras:0.002,80,7"), vp, 18);
  for (size_t i = 0; i < grid.size(); ++i) EXPECT_NEAR(vp.at(there[i]).sigma(), published[i], 6e-8 * (1 + published[i])) << i;
  EXPECT_THAT(config_error([&] { make_grid(parse_grid("karras:0.01,80"), VeGeometric(0.01, 50), 5); }),
              HasSubstr("sigma 80 is outside path ve"));
}

TEST(DiffusionGrid, ShiftedAndEven) {
  const std::vector<double> shifted = {1, .9, .75, .5, 0}, even = {1, .75, .5, .25, 0};
  EXPECT_THAT(make_grid(parse_grid("shifted:3"), RectFlow(), 4), Pointwise(DoubleNear(1e-15), shifted));
  EXPECT_THAT(make_grid(parse_grid("linspace"), RectFlow(), 4), Pointwise(DoubleNear(1e-15), even));
  const Grid sde = make_grid(parse_grid("linspace"), VpLinear(), 1000);
  EXPECT_EQ(sde.size(), 1001u);
  EXPECT_NEAR(sde[1], 1 - 1e-3, 1e-15);
  EXPECT_NEAR(sde[999], 1e-3, 1e-15);
  EXPECT_EQ(sde[1000], 0);
}

TEST(DiffusionGrid, CosineScheduleInSigma) {
  const auto u = cosine_sigmas(1000);
  ASSERT_EQ(u.size(), 1001u);
  expect_digits(u[0], 20291.1696);
  expect_digits(u[1], 641.662345);
  expect_digits(u[500], 1.01238956);
  expect_digits(u[999], .00642541, 1e-6);
  EXPECT_EQ(u[1000], 0);
}

TEST(DiffusionTimes, QuantilesAndMeans) {
  for (const double x : {-8.0, -3.0, -0.4, 0.0, 0.7, 2.5}) {
    const double u = 0.5 * std::erfc(-x / std::sqrt(2.0));
    EXPECT_NEAR(normal_quantile(u), x, 1e-11 * (1 + std::abs(x)));
  }
  EXPECT_NEAR(UniformTime(0, 1).expect([](double t) { return t * t; }), 1.0 / 3, 1e-12);
  EXPECT_NEAR(LogitNormalTime(0, 1).expect([](double t) { return std::log(t / (1 - t)); }), 0, 1e-12);
  EXPECT_NEAR(LogitNormalTime(0.3, 1.4).expect([](double t) { return std::pow(std::log(t / (1 - t)) - 0.3, 2); }), 1.96, 1e-9);
  const auto edm = std::make_shared<EdmIdentity>();
  EXPECT_NEAR(LogNormalSigma(edm).expect([&](double t) { return std::log(edm->at(t).s); }), -1.2, 1e-11);
  EXPECT_NEAR(LogUniformSigma(edm, 0.01, 1).expect([&](double t) { return std::log(edm->at(t).s); }), -std::log(100) / 2, 1e-11);
  EXPECT_NEAR(UniformIndex(4).expect([](double t) { return t; }), 0.625, 1e-15);
  // SD3: u = 1/2 shifts to 3/4.
  EXPECT_NEAR(LogitNormalTime(0, 1, 3).quantile(0.5), 0.75, 1e-15);
}

TEST(DiffusionTimes, DrawsHaveTheirDistributionAndDependOnTheSampleAlone) {
  const UniformIndex times(10);
  std::vector<int> counts(10);
  for (uint64_t i = 0; i < 10000; ++i) ++counts[static_cast<size_t>(std::nearbyint(times.draw({7, 3, i}).t * 10)) - 1];
  for (const int count : counts) EXPECT_NEAR(count, 1000, 5 * std::sqrt(900.0));
  EXPECT_EQ(times.draw({7, 3, 41}).t, times.draw({7, 3, 41}).t);
  const UniformTime even;
  EXPECT_NE(even.draw({7, 3, 41}).t, even.draw({7, 4, 41}).t);
  EXPECT_NE(even.draw({7, 3, 41}).t, even.draw({8, 3, 41}).t);
  // One in each stratum of the batch.
  const StratifiedTime strata(std::make_shared<UniformTime>(), 16);
  for (uint64_t i = 0; i < 16; ++i) {
    const double t = strata.draw({7, 3, i}).t;
    EXPECT_TRUE(t >= static_cast<double>(i) / 16 && t < static_cast<double>(i + 1) / 16) << t;
  }
}

TEST(DiffusionTimes, LossAwareTimesFollowTheLosses) {
  LossAwareTime times(4, 3, 0.01);
  std::vector<LossAwareTime::Observation> seen;
  const double loss_of[] = {1, 2, 3, 10};
  for (int round = 0; round < 4; ++round)
    for (int k = 0; k < 4; ++k) {
      if (round == 3 && k == 3) continue;
      seen.push_back({(k + 1) / 4.0, round == 0 ? 100 : loss_of[k]});
    }
  // Still one loss short of a full history at the last index: uniform.
  times.update(std::span(seen).first(11));
  EXPECT_EQ(times.probabilities(), std::vector<double>(4, 0.25));
  times.update(std::span(seen).subspan(11));
  times.update(std::vector<LossAwareTime::Observation>{{1.0, 10}});
  // The first losses of 100 have left the history.
  for (int k = 0; k < 4; ++k) EXPECT_NEAR(times.probabilities()[static_cast<size_t>(k)], loss_of[k] / 16 * 0.99 + 0.0025, 1e-12);
  // Importance weights undo the preference.
  double mean = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    const TimeDraw d = times.draw({1, 1, i});
    mean += d.weight * d.t / 20000;
  }
  EXPECT_NEAR(mean, 0.625, 0.02);
  LossAwareTime again(4, 3, 0.01);
  again.restore(times.state());
  EXPECT_EQ(again.probabilities(), times.probabilities());
  EXPECT_THROW(again.restore(std::vector<double>(3)), Error);
  EXPECT_THROW(again.update(std::vector<LossAwareTime::Observation>{{0.0, 1}}), Error);
}

TEST(DiffusionPresets, KnowTheirNamesAndOptions) {
  EXPECT_EQ(preset_names().size(), 11u);
  for (const std::string& preset : preset_names()) {
    const Process p = make_preset(preset);
    EXPECT_EQ(p.preset, preset);
    EXPECT_EQ(test::config_error_if_any([&] { check_sampler(p.sampler, *p.path, make_grid(p.grid, *p.path, p.steps)); }), "no error");
  }
  EXPECT_THAT(config_error([] { make_preset("ddqm"); }), HasSubstr("unknown preset 'ddqm'; valid: ddpm, ddim, iddpm, ncsn"));
  EXPECT_THAT(config_error([] { make_preset("flow", {.timesteps = 10}); }), HasSubstr("preset flow has no number of timesteps"));
  EXPECT_EQ(make_preset("ddpm", {.timesteps = 100}).path->steps(), 100);
}

}  // namespace
}  // namespace rz::models::diffusion
