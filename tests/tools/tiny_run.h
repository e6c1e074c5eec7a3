// A training run of a few steps on ranks as threads, in a folder of its own that goes when the test ends.
#pragma once

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "comm/link_model.h"
#include "runtime/core/random.h"
#include "tests/support/ranks.h"
#include "tools/job_file.h"
#include "tools/overlap/overlap_command.h"
#include "tools/train.h"

namespace rz::tools {

class TinyRun : public ::testing::Test {
 protected:
  TinyRun() {
    root_ = std::filesystem::temp_directory_path() / fmt::format("rz_run_{}_{}", getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    const char* words[] = {"and ", "the ", "lord ", "said ", "unto ", "moses ", "\n"};
    const Random random(1, "text");
    std::ofstream text(root_ / "text.txt");
    for (uint64_t i = 0; i < 3000; ++i) text << words[random.below(i, 7)];
  }
  ~TinyRun() override { std::filesystem::remove_all(root_); }

  std::string path(const std::string& name) const { return (root_ / name).string(); }

  // The run's folder.
  std::string train_tiny(const std::string& name, int ranks, const std::vector<std::string>& overrides = {}, const std::string& link = "") const {
    const std::string text = R"(
      seed: 5
      transformer { layers: 3 width: 32 heads: 2 context: 32 }
      text { path: ")" + path("text.txt") + R"(" }
      training { steps: 5 batch: 8 threads: 1 evaluate_sequences: 8 }
      schedule { learning_rate: 1e-2 warmup_steps: 2 }
    )";
    const ringzero::Job job = parse_job(text, "tiny.textproto", overrides);
    comm::LaunchOptions options;
    if (!link.empty()) options.network = comm::parse_network(link, "", 1);
    ::testing::internal::CaptureStdout();
    test::run_on_ranks(
        ranks,
        [&](comm::Communicator& comm) {
          train(job, {path(name), false, false}, comm);
        },
        options);
    ::testing::internal::GetCapturedStdout();
    return path(name);
  }

  // What `ringzero overlap` prints for a run.
  static std::string overlap(const std::string& run, const std::string& flag = "") {
    CLI::App app;
    add_overlap_command(app);
    ::testing::internal::CaptureStdout();
    try {
      app.parse(fmt::format("overlap {} {}", run, flag));
    } catch (...) {
      ::testing::internal::GetCapturedStdout();
      throw;
    }
    return ::testing::internal::GetCapturedStdout();
  }

  std::filesystem::path root_;
};

}  // namespace rz::tools
