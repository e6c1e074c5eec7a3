#include "tools/bench.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/kernels/cpu/tile_registers.h"
#include "tests/tools/tiny_run.h"

namespace rz::tools {
namespace {

class BenchTest : public TinyRun {
 protected:
  nlohmann::json bench_tiny(int ranks, const std::vector<std::string>& overrides = {}) const {
    const ringzero::Job job = parse_job(R"(
      name: "tiny"
      transformer { layers: 3 width: 32 heads: 2 context: 32 }
      text { path: ")" + path("text.txt") + R"(" }
      training { steps: 500 batch: 6 threads: 1 }
    )", "tiny.textproto", overrides);
    ::testing::internal::CaptureStdout();
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) { bench(job, {.warmup = 2, .steps = 4, .json = true}, comm); });
    return nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  }
};

// 6 for each weight of a product and token; attention: 2 products forward and 4 backward, over T (T + 1) / 2 pairs.
double tiny_gpt_flops(double vocabulary) {
  constexpr double kWidth = 32, kLayers = 3, kContext = 32, kBatch = 6;
  return 6 * kBatch * kContext * (12 * kLayers * kWidth * kWidth + kWidth * vocabulary) +
         6 * kLayers * kBatch * kWidth * kContext * (kContext + 1);
}

TEST_F(BenchTest, CountsTheArithmeticOfAStepAndAccountsForItsTime) {
  const nlohmann::json one = bench_tiny(1);
  EXPECT_EQ(one["ranks"], 1);
  EXPECT_EQ(one["steps"], 4);
  EXPECT_EQ(one["items_per_step"], 6 * 32);
  // The letters of "and the lord said unto moses": a d e h i l m n o r s t u, space, line feed.
  EXPECT_DOUBLE_EQ(one["flops_per_step"].get<double>(), tiny_gpt_flops(15));

  double sum_ms = 0, gflop = 0;
  std::set<std::string> ops;
  for (const auto& op : one["ops"]) {
    sum_ms += op["ms_per_step"].get<double>();
    gflop += op["gflop_per_step"].get<double>();
    ops.insert(op["op"].get<std::string>() + "/" + op["phase"].get<std::string>());
  }
  EXPECT_NEAR(gflop, 1e-9 * one["flops_per_step"].get<double>(), 1e-12);
  EXPECT_GE(sum_ms, one["step_ms"]["min"].get<double>());
  EXPECT_TRUE(ops.contains("linear/forward") && ops.contains("linear/backward") && ops.contains("optimizer/other")) << one["ops"].dump(1);
  EXPECT_LE(one["step_ms"]["min"], one["step_ms"]["median"]);
  const auto each = one["step_ms"]["each"].get<std::vector<double>>();
  ASSERT_EQ(each.size(), 4u);
  EXPECT_EQ(*std::ranges::min_element(each), one["step_ms"]["min"].get<double>());
  EXPECT_EQ(*std::ranges::max_element(each), one["step_ms"]["p90"].get<double>());
  EXPECT_GE(std::ranges::count(each, one["step_ms"]["median"].get<double>()), 1);
  const auto processor = one["processor_ms"]["each"].get<std::vector<double>>();
  ASSERT_EQ(processor.size(), 4u);
  // A thread's clock does not run ahead of the steady one, but for the microseconds between reading the two.
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_GT(processor[i], 0);
    EXPECT_LT(processor[i], each[i] + 1);
  }
  EXPECT_GT(one["matmul_peak_gflops"], 0);
  EXPECT_EQ(one["products"], cpu::tiles_available() ? "tile registers" : "multiply-adds");
  EXPECT_NEAR(one["model_flop_utilization"].get<double>(), one["gflops"].get<double>() / one["matmul_peak_gflops"].get<double>(), 1e-9);
}

TEST_F(BenchTest, TheModelsArithmeticDependsOnNeitherRanksNorRecomputation) {
  const double flops = bench_tiny(1)["flops_per_step"].get<double>();
  EXPECT_DOUBLE_EQ(bench_tiny(3, {"sharding.stage=3"})["flops_per_step"].get<double>(), flops);
  const auto again = bench_tiny(1, {"training.recompute=FULL"});
  EXPECT_DOUBLE_EQ(again["flops_per_step"].get<double>(), flops);
  double recomputed = 0;
  for (const auto& op : again["ops"])
    if (op["phase"] == "recompute") recomputed += op["gflop_per_step"].get<double>();
  EXPECT_GT(recomputed, 0.2e-9 * flops);
}

TEST_F(BenchTest, RefusesNoSteps) {
  const ringzero::Job job = parse_job("transformer {} text { path: \"" + path("text.txt") + "\" }", "x.textproto", {});
  const auto errors = test::errors_on_ranks(1, {}, [&](comm::Communicator& comm) { bench(job, {.steps = 0}, comm); });
  EXPECT_NE(errors[0].find("bench of 0 steps"), std::string::npos) << errors[0];
}

}  // namespace
}  // namespace rz::tools
