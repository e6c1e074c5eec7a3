// Run directories: what is refused and when, what a resumed run keeps, and that nothing is left half-written.
#include "tools/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "runtime/core/error.h"
#include "tests/support/config_error.h"
#include "tools/atomic_file.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RunDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("rz_run_test_{}_{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
    run_ = (folder_ / "a" / "run").string();
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static std::set<std::string> names(const fs::path& folder) {
    std::set<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder)) out.insert(entry.path().filename());
    return out;
  }
  // A run of three steps.
  void make_run() const {
    auto run = RunDirectory::create(run_, "job one\n");
    for (const int step : {1, 2, 3}) run.append_metrics({{"step", step}, {"loss", 1.0 / step}});
  }

  fs::path folder_;
  std::string run_;
};

using test::config_error;

TEST_F(RunDirectoryTest, ANewRunHasItsFiles) {
  auto run = RunDirectory::create(run_, "job\n");
  EXPECT_EQ(read(run.job_path()), "job\n");
  EXPECT_TRUE(fs::is_directory(run.checkpoint_path()));
  ordered_json line;
  line["step"] = 1;
  line["loss"] = 0.1;
  line["tokens_per_s"] = 1e-7;
  line["nan"] = std::nan("");
  run.append_metrics(line);
  // Flushed: readable while the run goes on.
  EXPECT_EQ(read(run.metrics_path()), "{\"step\":1,\"loss\":0.1,\"tokens_per_s\":1e-07,\"nan\":null}\n");
  run.append_metrics({{"step", 2}});
  EXPECT_THAT(read(run.metrics_path()), ::testing::EndsWith("\n{\"step\":2}\n"));
  run.write_summary({{"final_loss", 1.5}});
  run.write_summary({{"final_loss", 2.5}});
  EXPECT_EQ(ordered_json::parse(read(run.summary_path()))["final_loss"], 2.5);
  EXPECT_EQ(names(run_), (std::set<std::string>{"job.textproto", "metrics.jsonl", "summary.json", "checkpoint"}));
}

TEST_F(RunDirectoryTest, NumbersReadBackTheSame) {
  auto run = RunDirectory::create(run_, "");
  const double values[] = {2.302585092994046, 1.0 / 3, 5e-324, 1.7976931348623157e308, 123456789.125};
  for (const double value : values) run.append_metrics({{"step", 1}, {"loss", value}});
  std::ifstream in(run.metrics_path());
  std::string line;
  for (const double value : values) {
    std::getline(in, line);
    EXPECT_EQ(ordered_json::parse(line)["loss"].get<double>(), value) << line;
  }
}

TEST_F(RunDirectoryTest, AnotherRunIsNotOverwritten) {
  make_run();
  const std::string before = read(run_ + "/metrics.jsonl");
  EXPECT_THAT(config_error([&] { RunDirectory::create(run_, "job two\n"); }),
              AllOf(HasSubstr(run_), HasSubstr("metrics.jsonl"), HasSubstr("ended before its first checkpoint"), HasSubstr("--out")));
  EXPECT_EQ(read(run_ + "/metrics.jsonl"), before);
  EXPECT_EQ(read(run_ + "/job.textproto"), "job one\n");
  fs::create_directory(run_ + "/checkpoint/step-3");
  EXPECT_THAT(config_error([&] { RunDirectory::create(run_, "job two\n"); }), HasSubstr("--resume"));
  fs::remove(run_ + "/metrics.jsonl");
  EXPECT_THAT(config_error([&] { RunDirectory::create(run_, "job two\n"); }), HasSubstr("(checkpoint)"));
}

TEST_F(RunDirectoryTest, ARunThatNeverTrainedMayBeReplaced) {
  { RunDirectory::create(run_, "job one\n"); }
  auto run = RunDirectory::create(run_, "job two\n");
  EXPECT_EQ(read(run.job_path()), "job two\n");
}

TEST_F(RunDirectoryTest, AnUnwritablePlaceIsRefusedAndLeftAlone) {
  std::ofstream((folder_ / "file").string()) << "x";
  EXPECT_THAT(config_error([&] { RunDirectory::create((folder_ / "file" / "run").string(), ""); }), HasSubstr("file"));
  EXPECT_THAT(config_error([&] { RunDirectory::create((folder_ / "file").string(), ""); }), HasSubstr("file"));
  EXPECT_THAT(config_error([&] { RunDirectory::create("/proc/rz-no-such-place/run", ""); }), HasSubstr("/proc/rz-no-such-place"));
  EXPECT_THROW(RunDirectory::create("", ""), ConfigError);
  EXPECT_THROW(RunDirectory::create("/dev/null", ""), ConfigError);
  // Something in the way of a file of the run.
  fs::create_directories(folder_ / "way" / "metrics.jsonl");
  EXPECT_THROW(RunDirectory::create((folder_ / "way").string(), ""), ConfigError);
  fs::create_directories(folder_ / "job" / "job.textproto" / "x");
  EXPECT_THAT(config_error([&] { RunDirectory::create((folder_ / "job").string(), ""); }), HasSubstr("job.textproto"));
  EXPECT_EQ(names(folder_), (std::set<std::string>{"file", "way", "job"}));
  EXPECT_EQ(names(folder_ / "job"), (std::set<std::string>{"job.textproto"}));
  EXPECT_EQ(names(folder_ / "way"), (std::set<std::string>{"metrics.jsonl"}));
}

TEST_F(RunDirectoryTest, AReadOnlyFolderIsRefused) {
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  if (::access(folder_.c_str(), W_OK) != 0) {  // root may write anyway
    EXPECT_THAT(config_error([&] { RunDirectory::create(run_, ""); }), HasSubstr("Permission denied"));
  }
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(RunDirectoryTest, ResumeDropsLaterSteps) {
  make_run();
  {
    auto run = RunDirectory::resume(run_, "job two\n", 2);
    run.append_metrics({{"step", 3}, {"loss", 9.0}});
  }
  EXPECT_EQ(read(run_ + "/metrics.jsonl"), "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":9.0}\n");
  EXPECT_EQ(read(run_ + "/job.textproto"), "job two\n");
  { RunDirectory::resume(run_, "", 0); }
  EXPECT_EQ(read(run_ + "/metrics.jsonl"), "");
  EXPECT_EQ(names(run_), (std::set<std::string>{"job.textproto", "metrics.jsonl", "checkpoint"}));
}

TEST_F(RunDirectoryTest, ResumeDropsPicturesOfLaterSteps) {
  make_run();
  fs::create_directory(samples_directory(run_));
  for (const int step : {1, 2, 3}) std::ofstream(sample_path(run_, step)) << "picture";
  RunDirectory::resume(run_, "", 2);
  EXPECT_EQ(sampled_steps(run_), (std::vector<int64_t>{1, 2}));
}

TEST_F(RunDirectoryTest, ResumeDropsATornLastLine) {
  make_run();
  const std::string whole = read(run_ + "/metrics.jsonl");
  for (const char* torn : {"{\"step\":4,\"lo", "{\"step\":4}", "{", "\xff"}) {
    std::ofstream(run_ + "/metrics.jsonl", std::ios::binary) << whole << torn;
    RunDirectory::resume(run_, "", 5);
    EXPECT_EQ(read(run_ + "/metrics.jsonl"), whole) << torn;
  }
}

TEST_F(RunDirectoryTest, DamagedMetricsAreNamedByLine) {
  make_run();
  const std::string whole = read(run_ + "/metrics.jsonl");
  const std::string deep = std::string(200000, '[') + "\n";
  for (const std::string& damage : {std::string("\n"), std::string("{\"step\":}\n"), std::string("[1]\n"),
                                    std::string("{\"step\":\"4\"}\n"), std::string("{\"loss\":4}\n"), deep}) {
    const std::string text = whole + damage + "{\"step\":5}\n";
    std::ofstream(run_ + "/metrics.jsonl", std::ios::binary) << text;
    EXPECT_THAT(config_error([&] { RunDirectory::resume(run_, "", 5); }), HasSubstr("metrics.jsonl:4: "));
    EXPECT_EQ(read(run_ + "/metrics.jsonl"), text);
  }
}

TEST_F(RunDirectoryTest, ThereMustBeARunToResume) {
  EXPECT_THAT(config_error([&] { RunDirectory::resume(run_, "", 5); }), AllOf(HasSubstr(run_), HasSubstr("no run to resume")));
  EXPECT_FALSE(fs::exists(run_));
}

// A full disk, played by a limit on the size of files.
TEST_F(RunDirectoryTest, ALineThatDoesNotFitIsTakenBack) {
  auto run = RunDirectory::create(run_, "job\n");
  run.append_metrics({{"step", 1}});
  const std::string before = read(run.metrics_path());
  rlimit old_limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = old_limit;
  limit.rlim_cur = before.size() + 10;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_THROW(run.append_metrics({{"step", 2}, {"text", std::string(100, 'x')}}), Error);
  EXPECT_THROW(run.write_summary({{"text", std::string(100, 'x')}}), Error);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(read(run.metrics_path()), before);
  EXPECT_EQ(names(run_), (std::set<std::string>{"job.textproto", "metrics.jsonl", "checkpoint"}));
  run.append_metrics({{"step", 2}});
  EXPECT_EQ(read(run.metrics_path()), before + "{\"step\":2}\n");
}

}  // namespace
}  // namespace rz::tools
