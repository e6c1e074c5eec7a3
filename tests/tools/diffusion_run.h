// Jobs that train on images: sixty pictures of two classes in NumPy files, tiny networks, runs and samples on ranks as threads, in a folder
// that goes when the test ends.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/core/random.h"
#include "tests/support/ranks.h"
#include "tests/tools/run_files.h"
#include "tools/image_sample.h"
#include "tools/job_file.h"
#include "tools/memory_table.h"
#include "tools/train.h"

namespace rz::tools {

inline const std::string kUnet = "unet { width: 8 multipliers: [1, 2] patch: 2 head_width: 8 dropout: 0.1 }";
inline const std::string kDit = "dit { layers: 2 width: 12 heads: 3 patch: 4 dropout: 0.1 }";

class DiffusionJob : public ::testing::Test {
 protected:
  DiffusionJob() {
    root_ = std::filesystem::temp_directory_path() / fmt::format("rz_diffusion_{}_{}", getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    // Two classes of 8 x 8 images: a bright upper or lower half, noisy.
    const Random random(1, "images");
    std::string pixels, labels;
    for (uint64_t i = 0; i < 60; ++i) {
      labels += static_cast<char>(i % 2);
      for (uint64_t p = 0; p < 64; ++p) pixels += static_cast<char>((p / 32 == i % 2 ? 200 : 10) + random.below(i * 64 + p, 40));
    }
    write("x.npy", npy("60, 8, 8", pixels));
    write("y.npy", npy("60,", labels));
  }
  ~DiffusionJob() override { std::filesystem::remove_all(root_); }

  static std::string npy(const std::string& shape, const std::string& body) {
    std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.resize(118, ' ');
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header + body;
  }
  void write(const std::string& name, const std::string& bytes) const { std::ofstream(root_ / name, std::ios::binary) << bytes; }
  std::string path(const std::string& name) const { return (root_ / name).string(); }

  ringzero::Job job(const std::string& model, const std::vector<std::string>& overrides = {}, const std::string& diffusion = "diffusion {}") const {
    return parse_job(fmt::format("seed: 5 {} {} images {{ npy: '{}' npy_labels: '{}' flip: true }} training {{ steps: 4 batch: 7 threads: 1 "
                                 "evaluate_sequences: 5 ema_decay: 0.9 trace_steps: 0 }} schedule {{ learning_rate: 1e-2 }}",
                                 model, diffusion, path("x.npy"), path("y.npy")),
                     "test.textproto", overrides);
  }
  void run(const ringzero::Job& j, int ranks, const std::string& out, bool resume = false) const {
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) { train(j, {path(out), resume, true}, comm); });
  }
  std::vector<std::string> errors(const ringzero::Job& j, int ranks) const {
    return test::errors_on_ranks(ranks, {}, [&](comm::Communicator& comm) { train(j, {path("refused"), false, true}, comm); });
  }
  nlohmann::json summary(const std::string& out) const { return summary_of(path(out)); }
  std::vector<double> losses(const std::string& out) const { return losses_of(path(out)); }
  // A file of the folder.
  std::string bytes(const std::string& name) const {
    std::ifstream in(path(name), std::ios::binary);
    std::string all{std::istreambuf_iterator<char>(in), {}};
    EXPECT_FALSE(all.empty()) << name;
    return all;
  }
  // Predicts the memory of a run on 2 ranks, makes the run, and compares every byte.
  void expect_memory_as_predicted(const ringzero::Job& cell_job) const {
    MemoryCell cell = predict_cell(cell_job, 2, true);
    run(cell_job, 2, "cell");
    read_measured(path("cell"), cell);
    std::filesystem::remove_all(path("cell"));
    ASSERT_EQ(cell.measured.size(), 2u);
    EXPECT_EQ(cell.worst_difference_bytes(), 0);
  }
  static std::string refused(const std::string& text) {
    try {
      parse_job(text, "j");
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "accepted";
  }
  std::vector<uint8_t> samples(const std::string& run, const ImageSampleOptions& options, int ranks) const {
    std::vector<uint8_t> images;
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path(run), comm, options.guide);
      const auto mine = sample_images(model, plan_sampling(model, options), options, comm);
      if (comm.rank() == 0) images = mine;
    });
    return images;
  }
  std::string sampling_error(const std::string& run, const ImageSampleOptions& options) const {
    return test::errors_on_ranks(2, {}, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path(run), comm, options.guide);
      sample_images(model, plan_sampling(model, options), options, comm);
    })[1];
  }

  std::filesystem::path root_;
};

}  // namespace rz::tools
