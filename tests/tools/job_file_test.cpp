// Job files: good ones round trip with every default filled in, bad ones name place, value and valid choices.
#include "tools/job_file.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "tools/job_auto.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr const char* kSmallest = "transformer {}\ntext {}\n";

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_job(text, "j.txt", overrides);
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text;
  return "";
}

void expect_round_trip(const ringzero::Job& job) {
  const std::string text = effective_text(job);
  const auto again = parse_job(text, "other-name.textproto");
  EXPECT_TRUE(MessageDifferencer::Equals(job, again)) << text;
  EXPECT_EQ(effective_text(again), text);
}

TEST(JobFile, AutoStandsForTheNumberThatARunChooses) {
  const auto bucket = [](const std::string& text, const std::vector<std::string>& overrides = {}) {
    const auto job = parse_job(kSmallest + text, "j.txt", overrides);
    expect_round_trip(job);
    EXPECT_EQ(effective_text(job).find("bucket_mb: auto") != std::string::npos, job.sharding().bucket_mb() == kAuto) << text;
    return job.sharding().bucket_mb();
  };
  EXPECT_EQ(bucket("sharding { bucket_mb: auto }"), kAuto);
  EXPECT_EQ(bucket("sharding{bucket_mb:auto prefetch: 2}"), kAuto);
  EXPECT_EQ(bucket("sharding { bucket_mb # how large\n :\tauto}"), kAuto);
  EXPECT_EQ(bucket("sharding { bucket_mb: 2.5 }"), 2.5);
  EXPECT_EQ(bucket("", {"sharding.bucket_mb=auto"}), kAuto);
  EXPECT_EQ(bucket("", {"sharding={bucket_mb: auto}"}), kAuto);
  EXPECT_EQ(bucket("sharding { bucket_mb: auto }", {"sharding.bucket_mb=3"}), 3);
  // Text and comments are not touched.
  EXPECT_EQ(parse_job("name: 'bucket_mb: auto' # bucket_mb: auto\n" + std::string(kSmallest), "j.txt").name(), "bucket_mb: auto");
  // Places of errors stay, and the word is for this field alone.
  EXPECT_THAT(error_of("transformer {}\ntext {}\nsharding { bucket_mb: auto stage: 7 }"), HasSubstr("j.txt:3:28"));
  EXPECT_THAT(error_of("transformer {}\ntext {}\nsharding { bucket_mb: automatic }"), HasSubstr("a number or auto"));
  EXPECT_THAT(error_of("transformer {}\ntext {}\nsharding { prefetch_mb: auto }"), HasSubstr("valid: a number"));
  EXPECT_THAT(error_of(std::string(kSmallest) + "sharding { bucket_mb: -2 }"), HasSubstr("-2"));
  EXPECT_THAT(error_of(kSmallest, {"sharding.prefetch_mb=auto"}), HasSubstr("'auto' does not fit"));
}

TEST(JobFile, DefaultsAreFilledIn) {
  const auto job = parse_job(kSmallest, "some/dir/gpt_small.textproto");
  EXPECT_EQ(job.name(), "gpt_small");
  EXPECT_TRUE(job.has_seed());
  EXPECT_EQ(job.transformer().width(), 384);
  EXPECT_TRUE(job.transformer().has_positions());
  EXPECT_EQ(job.training().steps(), 1000);
  EXPECT_EQ(job.optimizer().kind_case(), ringzero::Optimizer::kAdamw);
  EXPECT_EQ(job.optimizer().adamw().weight_decay(), 0.1);
  EXPECT_EQ(job.schedule().kind(), ringzero::Schedule::COSINE);
  EXPECT_TRUE(job.communication().has_deadline_s());
  EXPECT_FALSE(job.has_sample());
  EXPECT_THAT(effective_text(job),
              ::testing::AllOf(HasSubstr("learning_rate: 0.001"), HasSubstr("stage: 0"), HasSubstr("transport: AUTO")));
  expect_round_trip(job);
}

TEST(JobFile, EffectiveTextRoundTrips) {
  expect_round_trip(parse_job(R"(
      name: "odd \"name\" \001\377"
      seed: 18446744073709551615  # the largest
      transformer { layers: 2 width: 96 heads: 4 kv_heads: 2 positions: ROPE norm: RMS_NORM mlp: SWIGLU bias: false dropout: 0.30000000000000004 }
      tokens { train_path: "a b.bin" validation_path: "c\n.bin" vocabulary: 300 }
      optimizer { sgd { momentum: 0.9 nesterov: true } }
      schedule { kind: LINEAR learning_rate: 4.9406564584124654e-324 final_learning_rate: 1.7976931348623157e308 }
      sample { prompt: "In the \303\244" tokens: 10 }
  )",
                              "j.txt"));
  expect_round_trip(
      parse_job("transformer {} text { validation_fraction: 0.1 } optimizer { adam { beta1: 0.123456789012345678 } }", "j.txt"));
}

TEST(JobFile, FilesAreLoadedOrRefused) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("rz_job_file_test_{}", ::getpid());
  fs::create_directories(folder);
  const auto load_error = [](const std::string& path) {
    try {
      load_job(path);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const std::string path = (folder / "fine.textproto").string();
  std::ofstream(path) << kSmallest;
  EXPECT_EQ(load_job(path, {"training.steps=7"}).training().steps(), 7);
  EXPECT_EQ(load_job(path).name(), "fine");
  EXPECT_THAT(load_error((folder / "none").string()), ::testing::AllOf(HasSubstr("none"), HasSubstr("No such file")));
  EXPECT_THAT(load_error(folder.string()), HasSubstr("not a regular file"));
  std::ofstream(path) << std::string(kMaxJobBytes + 1, '\n');
  EXPECT_THAT(load_error(path), HasSubstr("1048577 bytes"));
  std::ofstream(path) << kSmallest << "training { stepz: 3 }";
  EXPECT_THAT(load_error(path), ::testing::AllOf(StartsWith(path + ":3:12: training has no field 'stepz'; valid: steps, ")));
  fs::remove_all(folder);
}

struct BadJob {
  const char* text;
  const char* error;  // what the message starts with
};

TEST(JobFile, SyntaxErrorsNamePlaceAndChoices) {
  const BadJob cases[] = {
      {"foo { a: 1 }", "j.txt:1:1: the job has no field 'foo'; valid: "},
      {"transformer {\n\twidht: 3 }", "j.txt:2:9: transformer has no field 'widht'; valid: width, "},
      {"transformer { width: 3 # width: {\n foo: 3}", "j.txt:2:2: transformer has no field 'foo'; valid: "},
      {"optimizer { sgd { betta: 1 } }", "j.txt:1:19: optimizer.sgd has no field 'betta'; valid: "},
      {"transformer { width: \"a\" }", "j.txt:1:22: transformer.width: expected integer, got: \"a\"; valid: an integer"},
      {"transformer { width: 1.5 }", "j.txt:1:22: transformer.width: expected integer, got: 1.5; valid: an integer"},
      {"transformer { width: 99999999999999999999 }", "j.txt:1:22: transformer.width: integer out of range (99999999999999999999)"},
      {"seed: -1", "j.txt:1:7: seed: expected integer, got: -; valid: an integer, 0 or more"},
      {"transformer { positions: NOPE bias: true }", "j.txt:1:26: transformer.positions: unknown value NOPE; valid: one of LEARNED, ROPE"},
      {"transformer { positions: 7 } text {}", "j.txt:1:26: transformer.positions: unknown value 7; valid: one of LEARNED, ROPE"},
      {"transformer { positions: \"ROPE\" }",
       "j.txt:1:26: transformer.positions: expected integer or identifier, got: \"ROPE\"; valid: one of"},
      {"transformer {\n bias: maybe\n}", "j.txt:2:8: transformer.bias: unknown value maybe; valid: true or false"},
      {"transformer { width: 3 width: 4 }", "j.txt:1:24: transformer.width is given twice"},
      {"transformer {} transformer {}", "j.txt:1:16: transformer is given twice"},
      {"text {}\ntokens {}", "j.txt:2:1: tokens is given beside text: there can be only one data"},
      {"optimizer { adam {} sgd {} }", "j.txt:1:21: optimizer.sgd is given beside adam: there can be only one kind"},
      {"text { path: 3 }", "j.txt:1:14: text.path: expected string, got: 3; valid: text in quotes"},
      {"text { path: \"a", "j.txt:1:16: "},
      {"text {", "j.txt:1:7: expected identifier, got: the end of the file"},
      {"training { steps: 10 20 }", "j.txt:1:22: expected identifier, got: 20"},
      {"training [ {steps: 2}, {steps: 3} ]", "j.txt:1:10: "},
      {"[type.googleapis.com/ringzero.Job] {}", "j.txt:1:"},
      {"30 { steps: 3 }", "j.txt:1:1: "},
  };
  for (const auto& bad : cases) EXPECT_THAT(error_of(bad.text), StartsWith(bad.error)) << bad.text;
}

TEST(JobFile, ImpossibleValuesNamePlaceAndRange) {
  const BadJob cases[] = {
      {"", "j.txt:1:1: the job has no model; valid: transformer {...}"},
      {"transformer {}", "j.txt:1:1: the job has no data; valid: text {...} or tokens {...}"},
      {"text {} transformer { width: 385 }", "j.txt:1:23: transformer.width is 385, not a multiple of transformer.heads, 6"},
      {"text {} transformer {\n heads: 7 }", "j.txt:2:2: transformer.width is 384, not a multiple of transformer.heads, 7"},
      {"text {} transformer { heads: 0 }", "j.txt:1:23: transformer.heads is 0; valid: an integer in [1, "},
      {"text {} transformer { kv_heads: 4 }", "j.txt:1:23: transformer.kv_heads is 4, not a divisor of transformer.heads, 6"},
      {"text {} transformer { kv_heads: 12 }", "j.txt:1:23: transformer.kv_heads is 12, not a divisor"},
      {"text {} transformer { width: 18 positions: ROPE }",
       "j.txt:1:33: transformer.positions is ROPE, which turns pairs of channels, but a head has 3"},
      {"text {} transformer { layers: -1 }", "j.txt:1:23: transformer.layers is -1; valid: an integer in [1, "},
      {"text {} transformer { width: 9223372036854775807 }", "j.txt:1:23: transformer.width is 9223372036854775807"},
      {"text {} transformer { context: 0 }", "j.txt:1:23: transformer.context is 0"},
      {"text {} transformer { vocabulary: -1 }", "j.txt:1:23: transformer.vocabulary is -1"},
      {"text {} transformer { dropout: 1 }", "j.txt:1:23: transformer.dropout is 1; valid: a number in [0, 1)"},
      {"text {} transformer { rope_base: 0 }", "j.txt:1:23: transformer.rope_base is 0; valid: a number above 0"},
      {"text {} transformer { norm_epsilon: inf }", "j.txt:1:23: transformer.norm_epsilon is inf; valid: a finite number"},
      {"text { validation_fraction: nan } transformer {}", "j.txt:1:8: text.validation_fraction is nan; valid: a finite number"},
      {"text { validation_fraction: 1e999 } transformer {}", "j.txt:1:8: text.validation_fraction is inf"},
      {"text { validation_fraction: 1.0 } transformer {}", "j.txt:1:8: text.validation_fraction is 1; valid: a number in (0, 1)"},
      {"text { path: 'a\\0b' } transformer {}", "j.txt:1:8: text.path holds a NUL byte"},
      {"tokens { train_path: 'x' } transformer {}", "j.txt:1:1: tokens.validation_path is missing"},
      {"tokens { validation_path: 'x' } transformer {}", "j.txt:1:1: tokens.train_path is missing"},
      {"tokens { train_path: 'x' validation_path: 'y' vocabulary: 65537 } transformer {}", "j.txt:1:47: tokens.vocabulary is 65537"},
      {"tokens { train_path: 'x' validation_path: 'y' } transformer { vocabulary: 5 }",
       "j.txt:1:63: transformer.vocabulary is 5, fewer than the 50257"},
  };
  for (const auto& bad : cases) EXPECT_THAT(error_of(bad.text), StartsWith(bad.error)) << bad.text;

  const BadJob settings[] = {
      {"training { steps: 0 }", "j.txt:3:12: training.steps is 0; valid: an integer in [1, "},
      {"training { batch: 0 }", "j.txt:3:12: training.batch is 0; valid: an integer in [1, "},
      {"training { batch: 2\n accumulate: 3 }",
       "j.txt:4:2: training.accumulate is 3, more micro-batches than training.batch has sequences, 2"},
      {"training { threads: 2000 }", "j.txt:3:12: training.threads is 2000; valid: an integer in [0, 1024]"},
      {"training { clip_norm: -1 }", "j.txt:3:12: training.clip_norm is -1; valid: a number 0 or more"},
      {"training { ema_decay: 1 }", "j.txt:3:12: training.ema_decay is 1"},
      {"training { evaluate_every: -1 }", "j.txt:3:12: training.evaluate_every is -1"},
      {"training { evaluate_sequences: -1 }", "j.txt:3:12: training.evaluate_sequences is -1"},
      {"training { save_every: -1 }", "j.txt:3:12: training.save_every is -1"},
      {"optimizer { adamw { beta1: -0.1 } }", "j.txt:3:21: optimizer.adamw.beta1 is -0.1; valid: a number in [0, 1)"},
      {"optimizer { adam { epsilon: 0 } }", "j.txt:3:20: optimizer.adam.epsilon is 0; valid: a number above 0"},
      {"optimizer { sgd { nesterov: true } }", "j.txt:3:19: optimizer.sgd.nesterov is true, but optimizer.sgd.momentum is 0"},
      {"optimizer { sgd { weight_decay: -1 } }", "j.txt:3:19: optimizer.sgd.weight_decay is -1"},
      {"schedule { learning_rate: -1e-3 }", "j.txt:3:12: schedule.learning_rate is -0.001"},
      {"schedule { kind: 3 }", "j.txt:3:18: schedule.kind: unknown value 3; valid: one of CONSTANT, LINEAR, COSINE"},
      {"sharding { stage: 4 }", "j.txt:3:12: sharding.stage is 4; valid: an integer in [0, 3]"},
      {"sharding { stage: -1 }", "j.txt:3:12: sharding.stage is -1"},
      {"training { precision: BF16 } sharding { reduce_dtype: F16 }",
       "j.txt:3:41: sharding.reduce_dtype is F16, but training.precision is BF16; valid: F32 or the same"},
      {"training { precision: F16 loss_scaling { backoff: 1 } }",
       "j.txt:3:42: training.loss_scaling.backoff is 1; valid: a number in (0, 1)"},
      {"training { precision: F16 loss_scaling { initial: 0.5 } }", "j.txt:3:42: training.loss_scaling.initial is 0.5"},
      {"sharding { bucket_mb: -1 }", "j.txt:3:12: sharding.bucket_mb is -1"},
      {"communication { ranks: 0 }", "j.txt:3:17: communication.ranks is 0"},
      {"communication { deadline_s: 0 }", "j.txt:3:17: communication.deadline_s is 0"},
      {"communication { link: '1Gbps' }", "j.txt:3:17: communication.link is '1Gbps': '1Gbps' is no rate; valid: RATE[,LATENCY"},
      {"communication { nodes: 2 inter_node_link: 'fast' }", "j.txt:3:26: communication.inter_node_link is 'fast': 'fast' is no rate"},
      {"communication { inter_node_link: '1Gbit' }", "j.txt:3:17: communication.inter_node_link is '1Gbit', but there is one node"},
      {"communication { nodes: 2 }", "j.txt:3:17: communication.nodes is 2, but no link is given"},
      {"communication { nodes: 0 }", "j.txt:3:17: communication.nodes is 0; valid: 1 or more"},
      {"sample { top_p: 0 }", "j.txt:3:10: sample.top_p is 0; valid: a number in (0, 1]"},
      {"sample { temperature: -1 }", "j.txt:3:10: sample.temperature is -1"},
      {"sample { top_k: -1 }", "j.txt:3:10: sample.top_k is -1"},
      {"sample { tokens: -1 }", "j.txt:3:10: sample.tokens is -1"},
  };
  for (const auto& bad : settings) EXPECT_THAT(error_of(std::string(kSmallest) + bad.text), StartsWith(bad.error)) << bad.text;
}

TEST(JobFile, AllStagesAreValid) {
  for (const int stage : {0, 1, 2, 3}) {
    EXPECT_EQ(parse_job(kSmallest, "j.txt", {fmt::format("sharding.stage={}", stage)}).sharding().stage(), stage);
  }
}

TEST(JobFile, OverridesSetAnyField) {
  const auto job = parse_job(
      "transformer { width: 96 }\ntext { path: 'a' }\n", "j.txt",
      {"training.steps=5", "transformer.positions=rope", "transformer.mlp=SWIGLU", "schedule.learning_rate=2.5e-4",
       "transformer.bias=false", "text.path=a=b c", "seed=18446744073709551615", "name=x", "sample.prompt=In the", "training.steps=6"});
  EXPECT_EQ(job.training().steps(), 6);
  EXPECT_EQ(job.transformer().positions(), ringzero::Transformer::ROPE);
  EXPECT_EQ(job.transformer().mlp(), ringzero::Transformer::SWIGLU);
  EXPECT_EQ(job.schedule().learning_rate(), 2.5e-4);
  EXPECT_FALSE(job.transformer().bias());
  EXPECT_EQ(job.text().path(), "a=b c");
  EXPECT_EQ(job.seed(), 18446744073709551615ull);
  EXPECT_EQ(job.sample().prompt(), "In the");
  EXPECT_EQ(job.transformer().width(), 96);
}

TEST(JobFile, OverridesSelectArms) {
  const auto job = parse_job(std::string(kSmallest) + "optimizer { adamw { beta1: 0.5 } }", "j.txt",
                             {"optimizer.sgd.momentum=0.9", "tokens.train_path=a", "tokens.validation_path=b"});
  EXPECT_EQ(job.optimizer().kind_case(), ringzero::Optimizer::kSgd);
  EXPECT_EQ(job.optimizer().sgd().momentum(), 0.9);
  EXPECT_EQ(job.data_case(), ringzero::Job::kTokens);
  EXPECT_EQ(parse_job(kSmallest, "j.txt", {"optimizer.adam={}"}).optimizer().kind_case(), ringzero::Optimizer::kAdam);
  EXPECT_EQ(parse_job(kSmallest, "j.txt", {"optimizer.adam={beta2: 0.5}"}).optimizer().adam().beta2(), 0.5);
}

TEST(JobFile, OverrideErrorsNameTheOverride) {
  const BadJob cases[] = {
      {"training.stepz=0", "--set training.stepz=0: training has no field 'stepz'; valid: steps, "},
      {"steps=0", "--set steps=0: the job has no field 'steps'; valid: "},
      {"training.steps", "--set training.steps: expected path.to.field=value"},
      {"=3", "--set =3: expected path.to.field=value"},
      {"", "--set : expected path.to.field=value"},
      {"training..steps=3", "--set training..steps=3: training has no field ''"},
      {"training.=3", "--set training.=3: training has no field ''"},
      {"training.steps=1e3", "--set training.steps=1e3: '1e3' does not fit training.steps; valid: an integer"},
      {"training.steps=", "--set training.steps=: '' does not fit training.steps"},
      {"training.steps= 3", "--set training.steps= 3: ' 3' does not fit"},
      {"training.steps.x=1", "--set training.steps.x=1: steps has no fields of its own"},
      {"training=1", "--set training=1: '1' does not fit training; valid: {...} with the fields steps, "},
      {"training={steps: x}", "--set training={steps: x}: expected integer, got: x"},
      {"transformer.positions=sin",
       "--set transformer.positions=sin: 'sin' does not fit transformer.positions; valid: one of LEARNED, ROPE"},
      {"transformer.positions=1", "--set transformer.positions=1: '1' does not fit"},
      {"transformer.bias=1", "--set transformer.bias=1: '1' does not fit transformer.bias; valid: true or false"},
      {"seed=18446744073709551616",
       "--set seed=18446744073709551616: '18446744073709551616' does not fit seed; valid: an integer, 0 or more"},
      {"seed=-1", "--set seed=-1: '-1' does not fit seed"},
      {"schedule.learning_rate=nan", "--set schedule.learning_rate=nan: schedule.learning_rate is nan; valid: a finite number"},
      {"training.batch=0", "--set training.batch=0: training.batch is 0; valid: an integer in [1, "},
      {"transformer.heads=5", "--set transformer.heads=5: transformer.width is 384, not a multiple of transformer.heads, 5"},
      {"training={batch: 0}", "--set training={batch: 0}: training.batch is 0"},
  };
  for (const auto& bad : cases) EXPECT_THAT(error_of(kSmallest, {bad.text}), StartsWith(bad.error)) << bad.text;
  EXPECT_THAT(error_of(kSmallest, {"na\nme=\x01"}), StartsWith("--set na\\nme=\\x01: "));
}

}  // namespace
}  // namespace rz::tools
