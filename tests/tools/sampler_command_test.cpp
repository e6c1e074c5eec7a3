// ringzero sampler: replays of another library's tests, the Gaussian world from the command line, bad input.
#include "tools/sampler_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "tools/sampler_replay.h"

namespace rz::tools {
namespace {

using ::testing::HasSubstr;

nlohmann::json run(const std::string& arguments) {
  CLI::App app("test");
  add_sampler_command(app);
  ::testing::internal::CaptureStdout();
  try {
    app.parse("sampler " + arguments);
  } catch (...) {
    ::testing::internal::GetCapturedStdout();
    throw;
  }
  return nlohmann::json::parse(::testing::internal::GetCapturedStdout());
}

std::string error(const std::string& arguments) {
  try {
    run(arguments);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

double std_of(const std::string& arguments) { return run("--world gaussian:mean=.25,std=.6 " + arguments).at("std").get<double>(); }

// The sums that diffusers' tests state, to the digits they state: tests/schedulers/test_scheduler_{ddim,ddpm,edm_euler}.py.
TEST(SamplerReplay, GivesTheSumsOfDiffusers) {
  const struct {
    const char* name;
    double sum, mean, tolerance;
  } rows[] = {{"ddim_no_noise", 172.0067, 0.223967, 1e-4},
              {"ddim_full_loop_with_v_prediction", 52.5302, 0.0684, 1e-4},
              {"ddim_set_alpha_to_one", 149.8295, 0.1951, 1e-4},
              {"ddim_no_set_alpha_to_one", 149.0784, 0.1941, 1e-4},
              {"test_ddim_full_loop_with_noise", 354.5418, 0.4616, 1e-4},
              {"edm_euler", 34.1855, 0.0445, 1e-4},
              {"ddpm", 258.9606, 0.3372, 6e-5},
              {"ddpm_v_prediction", 202.0296, 0.2631, 6e-5},
              {"ddpm_noise", 387.9466, 0.5051, 6e-5},
              // The sampler's own step, whose posterior is in double: what float32 makes of it is in the sixth digit.
              {"ddpm_no_noise_in_double", 258.9606, 0.3372, 1e-5 * 258.9606}};
  for (const auto& row : rows) {
    const auto json = replay_json(row.name);
    EXPECT_NEAR(json.at("sum_abs").get<double>(), row.sum, row.tolerance) << row.name;
    EXPECT_NEAR(json.at("mean_abs").get<double>(), row.mean, 1e-4) << row.name;
  }
  EXPECT_GT(std::abs(replay_json("ddpm_no_noise_in_double").at("sum_abs").get<double>() - 258.9606), 1e-3) << "rounding would not matter";
  const auto variance = [](const char* name, size_t row) { return replay_json(name).at("variances").at(row).at("variance").get<double>(); };
  EXPECT_NEAR(variance("ddpm_variance", 0), 0, 1e-12);
  EXPECT_NEAR(variance("ddpm_variance", 1), .00979, 1e-5);
  EXPECT_NEAR(variance("ddpm_variance", 2), .02, 1e-5);
  EXPECT_NEAR(variance("ddim_variance", 1), .14771, 1e-5);
  EXPECT_NEAR(variance("ddim_variance", 2), .32460, 1e-5);
  for (const std::string& name : replay_cases()) EXPECT_EQ(replay_json(name).at("case"), name);
}

TEST(SamplerCommand, PrintsTheGaussianTable) {
  const auto row = [](const std::string& arguments) { return run("--world gaussian:mean=.25,std=.6 " + arguments); };
  const struct {
    const char* arguments;
    double mean, std;
    int evaluations;
  } table[] = {{"--preset ddpm --steps 1000 --variance fixed_small", .249996367659, .596016668383, 1000},
               {"--preset ddim --steps 10 --grid leading --eta 0", .248083124647, .466418123118, 10},
               {"--preset edm --steps 18 --order 2", .248026995782, .631361349758, 35},
               {"--preset rectified_flow --steps 10 --order 1", .25, .521798979306, 10}};
  for (const auto& expected : table) {
    const auto json = row(expected.arguments);
    EXPECT_NEAR(json.at("mean").get<double>(), expected.mean, 1e-12) << expected.arguments;
    EXPECT_NEAR(json.at("std").get<double>(), expected.std, 1e-12) << expected.arguments;
    EXPECT_EQ(json.at("evaluations"), expected.evaluations) << expected.arguments;
  }
}

// Flags change what they say: against a recursion for one coordinate with mean 0, on the steps that the flags name.
TEST(SamplerCommand, FlagsMeanWhatTheySay) {
  const auto chain = [](const std::vector<int>& indices, double eta, bool large) {
    std::vector<double> ab;
    double product = 1;
    for (int i = 0; i < 1000; ++i) ab.push_back(product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999));
    double variance = 1;
    for (size_t j = 0; j < indices.size(); ++j) {
      const double now = ab[static_cast<size_t>(indices[j])], next = j + 1 < indices.size() ? ab[static_cast<size_t>(indices[j + 1])] : 1;
      const double gain = std::sqrt(now) * 0.36 / (now * 0.36 + 1 - now), beta = 1 - now / next,
                   g2 = eta * eta * beta * (1 - next) / (1 - now);
      const double factor =
          std::sqrt(next) * gain + std::sqrt(std::max(0.0, 1 - next - g2)) * (1 - std::sqrt(now) * gain) / std::sqrt(1 - now);
      variance = factor * factor * variance + (next == 1 ? 0 : large ? beta : g2);
    }
    return std::sqrt(variance);
  };
  EXPECT_NEAR(std_of("--preset ddim --steps 5 --grid leading --eta 0.5"), chain({800, 600, 400, 200, 0}, 0.5, false), 1e-12);
  EXPECT_NEAR(std_of("--preset ddim --steps 5 --grid trailing"), chain({999, 799, 599, 399, 199}, 0, false), 1e-12);
  EXPECT_NEAR(std_of("--preset ddpm --steps 5 --grid linspace"), chain({999, 749, 500, 250, 0}, 1, false), 1e-12);
  EXPECT_NEAR(std_of("--preset ddpm --steps 5 --variance fixed_large"), chain({800, 600, 400, 200, 0}, 1, true), 1e-12);
  EXPECT_NEAR(std_of("--preset ddim --steps 5 --variance fixed_large"), chain({800, 600, 400, 200, 0}, 1, true), 1e-12);
  // Order 1 of EDM is DDIM in its coordinates; eta 0 leaves Heun alone.
  EXPECT_EQ(std_of("--preset edm --eta 0"), std_of("--preset edm"));
  double variance = 6400;
  for (int i = 0; i < 6; ++i) {
    const auto sigma = [](int k) {
      return k == 6 ? 0 : std::pow(std::pow(80, 1 / 7.0) + k / 5.0 * (std::pow(.002, 1 / 7.0) - std::pow(80, 1 / 7.0)), 7);
    };
    variance *= std::pow(1 + (sigma(i + 1) - sigma(i)) * sigma(i) / (0.36 + sigma(i) * sigma(i)), 2);
  }
  EXPECT_NEAR(std_of("--preset edm --order 1 --steps 6"), std::sqrt(variance), 1e-12);
  // A stochastic preset asked for eta or an order takes steps that have one.
  EXPECT_EQ(run("--world gaussian:mean=0,std=1 --preset vp_sde --steps 20 --eta 0").at("method"), "euler");
  EXPECT_EQ(run("--world gaussian:mean=0,std=1 --preset vp_sde --steps 20 --order 2").at("method"), "heun");
  EXPECT_EQ(run("--world gaussian:mean=0,std=1 --preset ddpm --steps 20 --order 2").at("eta"), 0);
  EXPECT_EQ(run("--world gaussian:mean=0,std=1 --preset sd3_flow --grid shifted:2 --steps 4").at("grid"), "shifted:2");
  EXPECT_EQ(run("--world gaussian:mean=0,std=1 --preset flow --steps 3 --trajectory").at("trajectory").size(), 3u);
  // A world of one point is reached exactly.
  const auto point = run("--world gaussian:mean=-0.5,std=0 --preset ddim --steps 7");
  EXPECT_EQ(point.at("mean"), -0.5);
  EXPECT_EQ(point.at("std"), 0);
}

TEST(SamplerCommand, BadInputIsNamed) {
  EXPECT_THAT(error(""), HasSubstr("give either --world gaussian:mean=M,std=C or --replay diffusers"));
  EXPECT_THAT(error("--world laplace:mean=0"), HasSubstr("unknown world 'laplace:mean=0'; valid: gaussian"));
  EXPECT_THAT(error("--world gaussian:mean=x,std=1"), HasSubstr("'x' is not a number"));
  EXPECT_THAT(error("--world gaussian:width=1"), HasSubstr("'width=1' is neither"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=-1"), HasSubstr("standard deviation of at least 0"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --preset vqgan"), HasSubstr("unknown preset 'vqgan'"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --preset flow --method euler_maruyama"), HasSubstr("path rect_flow has none at t = 1"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --preset flow --grid leading"), HasSubstr("path rect_flow is continuous"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --preset edm --eta 1"), HasSubstr("method heun takes no eta"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --order 3"), HasSubstr("order 3; valid: 1, 2"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --steps 2000"), HasSubstr("2000 steps on path linear, which has 1000 times"));
  EXPECT_THAT(error("--world gaussian:mean=0,std=1 --variance learned"), HasSubstr("use fixed_small or fixed_large"));
  EXPECT_THAT(error("--replay keras --case x"), HasSubstr("unknown replay 'keras'; valid: diffusers"));
  EXPECT_THAT(error("--replay diffusers --case x"), HasSubstr("unknown case 'x'; valid: ddim_no_noise"));
}

}  // namespace
}  // namespace rz::tools
