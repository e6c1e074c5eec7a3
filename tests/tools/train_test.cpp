// Whole training runs on ranks as threads: learning, reproducibility, resuming, run directories, bad input.
#include "tools/train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "comm/launch.h"
#include "runtime/core/random.h"
#include "runtime/kernels/cpu/tile_registers.h"
#include "tests/support/ranks.h"
#include "tests/tools/run_files.h"
#include "tools/job_file.h"
#include "tools/overlap/trace_file.h"
#include "tools/sample.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Training : public ::testing::Test {
 protected:
  Training() {
    root_ = fs::temp_directory_path() / fmt::format("rz_train_{}_{}", getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_);
    // Words from a small lexicon: enough structure to learn in a hundred steps.
    const char* words[] = {"and ", "the ", "lord ", "said ", "unto ", "moses ", "\n"};
    const Random random(1, "text");
    std::ofstream text(root_ / "text.txt");
    for (uint64_t i = 0; i < 3000; ++i) text << words[random.below(i, 7)];
  }
  ~Training() override { fs::remove_all(root_); }

  ringzero::Job job(const std::vector<std::string>& overrides = {}) const {
    const std::string text = R"(
      seed: 5
      transformer { layers: 2 width: 16 heads: 2 context: 16 dropout: 0.1 }
      text { path: ")" + (root_ / "text.txt").string() + R"(" }
      training { steps: 6 batch: 7 threads: 1 evaluate_sequences: 20 }
      schedule { learning_rate: 1e-2 warmup_steps: 2 }
    )";
    return parse_job(text, "test.textproto", overrides);
  }

  std::string path(const std::string& name) const { return (root_ / name).string(); }

  void run(const ringzero::Job& j, int ranks, const std::string& out, bool resume = false) const {
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) { train(j, {path(out), resume, false}, comm); });
  }

  std::vector<std::string> errors(const ringzero::Job& j, int ranks, const std::string& out, bool resume = false) const {
    return test::errors_on_ranks(ranks, {}, [&](comm::Communicator& comm) { train(j, {out, resume, false}, comm); });
  }

  nlohmann::json summary(const std::string& out) const { return summary_of(path(out)); }

  std::vector<double> losses(const std::string& out) const { return losses_of(path(out)); }

  fs::path root_;
};

TEST_F(Training, LearnsAndSaysWhatItDid) {
  run(job({"training.steps=120"}), 2, "a");
  const auto all = losses("a");
  ASSERT_EQ(all.size(), 120u);
  EXPECT_LT(all.back(), 0.6 * all.front());
  const auto s = summary("a");
  EXPECT_EQ(s.at("ranks"), 2);
  EXPECT_EQ(s.at("steps"), 120);
  EXPECT_LT(s.at("val_loss").get<double>(), 0.6 * all.front());
  EXPECT_EQ(s.at("weights_digest").get<std::string>().size(), 16u);
  EXPECT_EQ(s.at("per_rank").size(), 2u);
  for (const auto& rank : s.at("per_rank")) EXPECT_EQ(rank.at("memory").at("unaccounted_bytes"), 0);
  std::ifstream in(path("a") + "/metrics.jsonl");
  std::string line;
  std::getline(in, line);
  const auto first = nlohmann::json::parse(line);
  for (const char* key : {"step", "loss", "grad_norm", "lr", "tokens", "step_ms", "tokens_per_s"}) EXPECT_TRUE(first.contains(key)) << key;
  EXPECT_EQ(first.at("tokens"), 7 * 16);
}

TEST_F(Training, NoCategoryPeakGrowsFromTheSecondStepOn) {
  for (const int stage : {0, 1, 2, 3}) {
    // Validations and checkpoints in between leave nothing behind.
    const std::string out = fmt::format("stage{}", stage);
    run(job({fmt::format("sharding.stage={}", stage), "training.steps=12", "training.evaluate_every=4", "training.save_every=3"}), 3, out);
    const auto s = summary(out);
    std::ifstream in(path(out) + "/metrics.jsonl");
    int64_t steps = 0;
    for (std::string line; std::getline(in, line); ++steps) {
      const auto peaks = nlohmann::json::parse(line).at("peak_bytes");
      EXPECT_GT(peaks.at("activation"), 0);
      if (steps > 0) {
        EXPECT_EQ(peaks, s.at("per_rank")[0].at("memory").at("step_peak_bytes")) << "stage " << stage << " step " << steps + 1;
      }
    }
    EXPECT_EQ(steps, 12);
    for (const auto& rank : s.at("per_rank")) {
      EXPECT_GE(rank.at("memory").at("step_peaks_constant_since"), 1);
      EXPECT_LE(rank.at("memory").at("step_peaks_constant_since"), 2) << "stage " << stage << ": " << rank;
    }
  }
}

TEST_F(Training, StagesRanksAndRepetitionAgree) {
  run(job(), 3, "reference");
  run(job(), 3, "again");
  EXPECT_EQ(losses("again"), losses("reference"));
  for (const char* stage : {"1", "2", "3"}) {
    run(job({std::string("sharding.stage=") + stage}), 3, std::string("stage") + stage);
    EXPECT_EQ(summary(std::string("stage") + stage).at("weights_digest"), summary("reference").at("weights_digest")) << stage;
    EXPECT_EQ(losses(std::string("stage") + stage), losses("reference"));
    EXPECT_EQ(summary(std::string("stage") + stage).at("val_loss"), summary("reference").at("val_loss"));
  }
  for (const int ranks : {1, 2, 5}) {
    const std::string out = fmt::format("ranks{}", ranks);
    run(job({"training.check_replicas=true"}), ranks, out);
    const auto a = losses(out), b = losses("reference");
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5 * b[i]) << ranks << " ranks, step " << i;
  }
}

// One way of multiplying gives one result on any machine with multiply-adds; where there are tile registers the other gives other bits of
// nearly the same numbers, and what a run trained is sampled its own way.
TEST_F(Training, ProductsAreMultipliedAsTheJobSays) {
  const std::vector<std::string> wide = {"transformer.width=64", "transformer.dropout=0"};
  auto by_adds = wide;
  by_adds.push_back("training.products=MULTIPLY_ADDS");
  for (const char* stage : {"0", "3"}) {
    const std::string ending = stage;
    auto overrides = wide;
    overrides.push_back("sharding.stage=" + ending);
    run(job(overrides), 3, "auto" + ending);
    overrides = by_adds;
    overrides.push_back("sharding.stage=" + ending);
    run(job(overrides), 3, "adds" + ending);
  }
  EXPECT_EQ(summary("auto0").at("weights_digest"), summary("auto3").at("weights_digest"));
  EXPECT_EQ(summary("adds0").at("weights_digest"), summary("adds3").at("weights_digest"));
  EXPECT_EQ(summary("auto0").at("weights_digest") == summary("adds0").at("weights_digest"), !cpu::tiles_available());
  EXPECT_NEAR(summary("auto0").at("val_loss").get<double>(), summary("adds0").at("val_loss").get<double>(), 1e-4);
}

TEST_F(Training, AutomaticBucketsAreChosenAlikeAndChangeNothingElse) {
  for (const char* stage : {"0", "3"}) {
    SCOPED_TRACE(stage);
    const std::vector<std::string> common = {std::string("sharding.stage=") + stage, "schedule.kind=CONSTANT"};
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), common.begin(), common.end());
      return job(more);
    };
    const std::string tuned = std::string("auto") + stage, given = std::string("given") + stage;
    run(with({"sharding.bucket_mb=auto"}), 3, tuned);
    const double chosen = summary(tuned).at("bucket_mb_chosen").get<double>();
    EXPECT_GE(chosen, 0);
    // The run says what it used, and is the run that would have been told so.
    const auto used = load_job(path(tuned) + "/job.textproto");
    EXPECT_EQ(used.sharding().bucket_mb(), chosen);
    run(with({fmt::format("sharding.bucket_mb={}", chosen)}), 3, given);
    EXPECT_EQ(losses(tuned), losses(given));
    EXPECT_EQ(summary(tuned).at("weights_digest"), summary(given).at("weights_digest"));
    EXPECT_FALSE(summary(given).contains("bucket_mb_chosen"));
    for (const char* key : {"peak_total_bytes", "peak_bytes", "state_bytes"})
      EXPECT_EQ(summary(tuned).at("per_rank")[1].at("memory").at(key), summary(given).at("per_rank")[1].at("memory").at(key)) << key;
    EXPECT_EQ(summary(tuned).at("per_rank")[1].at("wire").at("sent_bytes_per_step"), summary(given).at("per_rank")[1].at("wire").at("sent_bytes_per_step"));
    // Who goes on with it keeps its buckets.
    run(with({"sharding.bucket_mb=auto", "training.steps=8"}), 3, tuned, true);
    EXPECT_EQ(summary(tuned).at("bucket_mb_chosen").get<double>(), chosen);
    run(with({fmt::format("sharding.bucket_mb={}", chosen), "training.steps=8"}), 3, given, true);
    EXPECT_EQ(summary(tuned).at("weights_digest"), summary(given).at("weights_digest"));
  }
}

TEST_F(Training, AutomaticBucketsWorkForHalfPrecisionAndOneRank) {
  run(job({"sharding.bucket_mb=auto", "training.precision=F16", "training.loss_scaling.largest=4294967296", "training.loss_scaling.initial=4294967296"}), 2, "half");
  EXPECT_TRUE(summary("half").contains("bucket_mb_chosen"));
  run(job({"sharding.bucket_mb=auto"}), 1, "alone");
  EXPECT_EQ(summary("alone").at("bucket_mb_chosen"), 0);
  // Seven micro-batches on three ranks: no step is like another rank's.
  for (const std::string& error : errors(job({"sharding.bucket_mb=auto", "sharding.reduction=EXACT"}), 3, path("exact")))
    EXPECT_THAT(error, HasSubstr("sharding.bucket_mb: auto: "));
  EXPECT_FALSE(fs::exists(path("exact") + "/metrics.jsonl"));
}

TEST_F(Training, ResumingContinuesBitForBit) {
  for (const char* stage : {"0", "2", "3"}) {
    const std::string with_stage = std::string("sharding.stage=") + stage;
    const std::vector<std::string> common = {with_stage, "training.ema_decay=0.9", "schedule.kind=CONSTANT"};
    auto whole = common, part = common;
    whole.push_back("training.steps=6");
    part.push_back("training.steps=3");
    run(job(whole), 3, std::string("whole") + stage);
    run(job(part), 3, std::string("part") + stage);
    run(job(whole), 3, std::string("part") + stage, true);
    EXPECT_EQ(losses(std::string("part") + stage), losses(std::string("whole") + stage)) << stage;
    EXPECT_EQ(summary(std::string("part") + stage).at("weights_digest"), summary(std::string("whole") + stage).at("weights_digest"));
    EXPECT_EQ(summary(std::string("part") + stage).at("val_loss"), summary(std::string("whole") + stage).at("val_loss"));
  }
}

TEST_F(Training, SixteenBitRunsAgreeAcrossStagesAndResumeBitForBit) {
  for (const std::string precision : {"bf16", "f16"}) {
    // A scale that overflows at first: skipped steps must survive a restart too.
    const std::vector<std::string> common = {"training.precision=" + precision, "schedule.kind=CONSTANT", "training.ema_decay=0.9",
                                             "training.loss_scaling.largest=4294967296", "training.loss_scaling.initial=4294967296"};
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), common.begin(), common.end());
      return job(more);
    };
    const std::string whole = "whole_" + precision, part = "part_" + precision;
    run(with({"training.steps=12"}), 3, whole);
    run(with({"training.steps=5", "sharding.stage=3"}), 3, part);
    run(with({"training.steps=12", "sharding.stage=2"}), 3, part, true);
    EXPECT_EQ(losses(part), losses(whole)) << precision;
    EXPECT_EQ(summary(part).at("weights_digest"), summary(whole).at("weights_digest")) << precision;
    EXPECT_EQ(summary(part).at("val_loss"), summary(whole).at("val_loss"));
    EXPECT_EQ(summary(whole).at("precision"), precision);
    std::ifstream in(path(part) + "/metrics.jsonl");
    std::string line;
    for (std::string next; std::getline(in, next);) line = next;
    EXPECT_EQ(nlohmann::json::parse(line).contains("loss_scale"), precision == "f16");
    if (precision == "f16") {
      EXPECT_GT(nlohmann::json::parse(line).at("skipped"), 0);
      EXPECT_EQ(summary(part).at("skipped_steps"), summary(whole).at("skipped_steps"));
      EXPECT_EQ(summary(part).at("loss_scale"), summary(whole).at("loss_scale"));
    }
  }
}

TEST_F(Training, AnyPrecisionGoesOnFromAnyOther) {
  run(job({"training.steps=20"}), 2, "a");
  run(job({"training.steps=22", "training.precision=bf16", "sharding.stage=2"}), 3, "a", true);
  run(job({"training.steps=24", "training.precision=f16", "sharding.stage=3"}), 2, "a", true);
  run(job({"training.steps=26"}), 1, "a", true);
  const auto all = losses("a");
  ASSERT_EQ(all.size(), 26u);
  for (size_t i = 20; i < all.size(); ++i) EXPECT_LT(all[i], 0.9 * all.front()) << "step " << i;
}

TEST_F(Training, ACheckpointFitsAnyRanksAndStage) {
  run(job({"training.steps=3"}), 3, "from");
  const auto digest = summary("from").at("weights_digest");
  for (const auto& [ranks, stage] : std::vector<std::pair<int, const char*>>{{1, "0"}, {2, "3"}, {5, "1"}}) {
    const std::string to = fmt::format("to{}", ranks);
    fs::copy(path("from"), path(to), fs::copy_options::recursive);
    // Nothing left to do: it loads, evaluates and saves again.
    run(job({"training.steps=3", std::string("sharding.stage=") + stage}), ranks, to, true);
    EXPECT_EQ(summary(to).at("weights_digest"), digest);
  }
}

TEST_F(Training, ARunCanBeSampled) {
  run(job({"training.steps=40"}), 2, "a");
  test::run_on_ranks(1, [&](comm::Communicator& comm) {
    SampleOptions options;
    options.run = path("a");
    options.sample.set_prompt("the ");
    options.sample.set_tokens(30);
    ::testing::internal::CaptureStdout();
    sample_run(options, comm);
    const std::string text = ::testing::internal::GetCapturedStdout();
    EXPECT_TRUE(text.starts_with("the "));
    EXPECT_EQ(text.size(), 4u + 30 + 1);
  });
  const auto errors = test::errors_on_ranks(1, {}, [&](comm::Communicator& comm) {
    SampleOptions options;
    options.run = path("a");
    options.sample.set_prompt("Z");
    options.sample.set_tokens(3);
    sample_run(options, comm);
  });
  EXPECT_THAT(errors[0], HasSubstr("Z"));
}

// Bad input is one error on every rank, before anything is written.
TEST_F(Training, BadInputIsNamedOnEveryRank) {
  struct Case {
    std::vector<std::string> overrides;
    const char* text;
  };
  const std::vector<Case> cases = {
      {{"text.path=/nowhere/text.txt"}, "/nowhere/text.txt"},
      {{"transformer.context=100000"}, "100000"},
      {{"training.batch=2"}, "batch of 2"},
      {{"training.batch=5", "training.accumulate=2"}, "training.batch must be at least 6"},
      {{"transformer.vocabulary=3"}, "vocabulary 3"},
  };
  for (const auto& c : cases) {
    for (const auto& error : errors(job(c.overrides), 3, path("bad"))) EXPECT_THAT(error, HasSubstr(c.text));
    EXPECT_FALSE(fs::exists(path("bad"))) << c.text;
  }
}

TEST_F(Training, AnUnwritableDirectoryIsNamed) {
  // A file stands where the directory should be made: nobody can write there, root neither.
  std::ofstream(root_ / "file") << "x";
  for (const auto& error : errors(job(), 3, path("file") + "/run")) EXPECT_THAT(error, HasSubstr(path("file")));
}

TEST_F(Training, AnotherRunIsNotOverwritten) {
  run(job(), 2, "a");
  const auto before = losses("a");
  for (const auto& error : errors(job(), 2, path("a"))) EXPECT_THAT(error, HasSubstr("--resume"));
  EXPECT_EQ(losses("a"), before);
}

TEST_F(Training, ResumingAFinishedRunLeavesWhatItWrote) {
  const auto j = job({"training.trace_steps=4"});
  run(j, 2, "a");
  const auto bytes_of = [&](const std::string& file) {
    std::ifstream in(path("a/" + file), std::ios::binary);
    EXPECT_TRUE(in.good()) << file;
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::vector<std::string> files = {"summary.json", "metrics.jsonl", fs::relative(trace_path(path("a"), 1), path("a")).string()};
  std::vector<std::string> before;
  for (const auto& file : files) before.push_back(bytes_of(file));
  run(j, 2, "a", true);
  for (size_t i = 0; i < files.size(); ++i) EXPECT_EQ(bytes_of(files[i]), before[i]) << files[i];
  // A run that died just before it wrote its summary gets one.
  fs::remove(path("a/summary.json"));
  run(j, 2, "a", true);
  EXPECT_THAT(bytes_of("summary.json"), ::testing::AllOf(HasSubstr("\"final_loss\": null"), HasSubstr("\"weights_digest\"")));
}

TEST_F(Training, WhatCannotBeSampledIsSaidAtOnce) {
  for (const auto& error : errors(job({"sample.tokens=5", "sample.prompt=#"}), 2, path("a"))) EXPECT_THAT(error, HasSubstr("#"));
  EXPECT_FALSE(fs::exists(path("a")));
}

TEST_F(Training, ResumingNothingOrAnotherModelIsAnError) {
  for (const auto& error : errors(job(), 2, path("none"), true)) EXPECT_THAT(error, HasSubstr("none"));
  run(job({"training.steps=2"}), 2, "a");
  for (const auto& error : errors(job({"transformer.width=32"}), 2, path("a"), true)) EXPECT_THAT(error, HasSubstr("wte.weight"));
}

TEST_F(Training, RanksWithDifferentJobsAreRefused) {
  const auto texts = test::errors_on_ranks(3, {}, [&](comm::Communicator& comm) {
    train(job({comm.rank() == 1 ? "seed=6" : "seed=5"}), {path("mixed"), false, false}, comm);
  });
  for (const auto& error : texts) EXPECT_THAT(error, ::testing::AllOf(HasSubstr("job"), HasSubstr("rank 1")));
}

TEST_F(Training, ADivergingRunStopsOnEveryRank) {
  const auto texts = errors(job({"schedule.learning_rate=1e30", "schedule.warmup_steps=0", "training.clip_norm=0", "optimizer.sgd={}", "training.steps=50"}), 3, path("nan"));
  for (const auto& error : texts) EXPECT_THAT(error, HasSubstr("not both finite"));
}

TEST_F(Training, ExactSumsDoNotDependOnRanksStagesOrInterruption) {
  for (const std::string precision : {"F32", "F16"}) {
    // In F16 from a scale that overflows at first: what was skipped is part of the state.
    const auto exact = [&](std::vector<std::string> more) {
      more.insert(more.end(), {"sharding.reduction=EXACT", "training.micro_batch=2", "schedule.kind=CONSTANT", "training.ema_decay=0.5",
                               fmt::format("training.precision={}", precision), "training.loss_scaling.largest=4194304", "training.loss_scaling.initial=4194304"});
      return job(more);
    };
    const auto at = [&](const char* out) { return fmt::format("{}_{}", out, precision); };
    const std::string one = at("one");
    run(exact({}), 1, one);
    const auto expected = summary(one);
    if (precision == "F16") {
      EXPECT_GT(expected.at("skipped_steps"), 0);
      EXPECT_LT(expected.at("skipped_steps"), 6);
    }
    const auto same = [&](const std::string& out) {
      EXPECT_EQ(losses(out), losses(one)) << out;
      for (const char* key : {"weights_digest", "val_loss", "final_loss"}) EXPECT_EQ(summary(out).at(key), expected.at(key)) << out << " " << key;
    };
    run(exact({"sharding.stage=3", "training.accumulate=4"}), 3, at("three"));
    same(at("three"));
    run(exact({"sharding.stage=2", "sharding.group_size=2", "sharding.reduce_every=true", "training.threads=2"}), 4, at("four"));
    same(at("four"));
    run(exact({"sharding.stage=1", "sharding.bucket_mb=1"}), 7, at("seven"));  // more ranks than micro-batches
    same(at("seven"));
    run(exact({"training.steps=3"}), 4, at("part"));
    run(exact({"sharding.stage=3"}), 2, at("part"), true);
    same(at("part"));
  }
}

TEST_F(Training, GroupsThatDoNotDivideTheRanksAreRefused) {
  for (const auto& error : errors(job({"sharding.group_size=2"}), 3, path("refused"))) EXPECT_THAT(error, HasSubstr("sharding.group_size"));
  EXPECT_FALSE(fs::exists(path("refused")));
}

}  // namespace
}  // namespace rz::tools
