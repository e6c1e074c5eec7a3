// What a diffusion job does beside its steps: times that follow the losses, pictures of samples.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/checkpoint/agreement.h"
#include "tests/tools/diffusion_run.h"
#include "tools/diffusion_task.h"
#include "tools/overlap/overlap_command.h"
#include "tools/picture.h"
#include "tools/run_directory.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kAware = "diffusion { preset: 'ddpm' timesteps: 8 loss_aware_times: true loss_history: 2 }";
const std::vector<std::string> kExact = {"sharding.reduction=EXACT", "training.micro_batch=2", "training.steps=12"};

class DiffusionTimes : public DiffusionJob {};

TEST_F(DiffusionTimes, LossesOfAllRanksDecideAlikeWhateverTheirNumber) {
  run(job(kUnet, kExact, kAware), 1, "one");
  for (const auto& [ranks, stage] : {std::pair(2, 0), std::pair(3, 0), std::pair(3, 3), std::pair(4, 3)}) {
    const std::string out = fmt::format("{}_{}", ranks, stage);
    auto staged = kExact;
    staged.push_back(fmt::format("sharding.stage={}", stage));
    run(job(kUnet, staged, kAware), ranks, out);
    EXPECT_EQ(summary(out).at("weights_digest"), summary("one").at("weights_digest")) << out;
    EXPECT_EQ(losses(out), losses("one")) << out;
  }
  // It does decide: without it other times are drawn.
  auto even = kExact;
  even.push_back("diffusion.loss_aware_times=false");
  run(job(kUnet, even, kAware), 1, "even");
  EXPECT_NE(summary("even").at("weights_digest"), summary("one").at("weights_digest"));
  // Validation is at the preset's own times, so that it stays comparable.
  auto none = kExact;
  none.insert(none.end(), {"schedule.learning_rate=0"});
  run(job(kUnet, none, kAware), 2, "still");
  none.push_back("diffusion.loss_aware_times=false");
  run(job(kUnet, none, kAware), 2, "still_even");
  EXPECT_EQ(summary("still").at("val_loss"), summary("still_even").at("val_loss"));
}

TEST_F(DiffusionTimes, WhatWasLearnedOfLossesIsResumed) {
  const std::vector<std::string> whole = {"training.steps=12", "schedule.kind=CONSTANT"};
  run(job(kUnet, whole, kAware), 2, "whole");
  run(job(kUnet, {"training.steps=7", "schedule.kind=CONSTANT"}, kAware), 2, "part");
  run(job(kUnet, whole, kAware), 2, "part", true);
  EXPECT_EQ(summary("part").at("weights_digest"), summary("whole").at("weights_digest"));
  EXPECT_EQ(losses("part"), losses("whole"));
  // Sampling and further training read the weights alone.
  ImageSampleOptions options{.count = 2};
  EXPECT_EQ(samples("part", options, 2), samples("whole", options, 1));
  run(job(kUnet, {"training.initialize_from=" + path("part")}, "diffusion { preset: 'ddpm' timesteps: 8 }"), 2, "next");
  expect_memory_as_predicted(job_of_cell(job(kUnet, {}, kAware), 2, 3, 3));
}

TEST_F(DiffusionTimes, TimesOfLargeLossesAreDrawnMore) {
  const ringzero::Job j = job(kUnet, {"training.batch=64"}, kAware);
  test::run_on_ranks(3, [&](comm::Communicator& comm) {
    DiffusionTask task(j, load_images(j));
    task.module().materialize(j.seed());
    std::vector<float> state = task.state();
    ASSERT_EQ(state.size(), 8u * 3);
    for (size_t k = 0; k < 8; ++k) state[3 * k] = 2, state[3 * k + 1] = state[3 * k + 2] = k == 5 ? 9.0F : 1.0F;
    task.restore(state);
    EXPECT_EQ(task.state(), state);
    int64_t there = 0;
    for (uint64_t i = 0; i < 1600; ++i) there += task.times().draw({j.seed(), 0, i}).t == 6.0 / 8;
    EXPECT_NEAR(static_cast<double>(there), 900, 80);  // 9 of 16; 1 of 8 without the losses
    // A step whose losses there are all small makes that time a rare one again, on every rank.
    std::vector<float> other = state;
    for (size_t k = 0; k < 8; ++k) other[3 * k + 1] = other[3 * k + 2] = 1e3F;
    task.restore(other);
    const auto mine = models::sample_range(64, comm.rank(), comm.size());
    task.train_loss(0, mine, 64);
    task.end_step(comm);
    const auto seen = task.state();
    for (size_t k = 0; k < 8; ++k) EXPECT_LT(seen[3 * k + 2], 100) << "time " << k << " was not seen by 64 samples";
    for (const auto& text : optim::checkpoint::gather_strings(comm, {reinterpret_cast<const char*>(seen.data()), seen.size() * sizeof(float)}))
      EXPECT_EQ(text, std::string(reinterpret_cast<const char*>(seen.data()), seen.size() * sizeof(float)));
  });
}

TEST_F(DiffusionTimes, PicturesOfSamplesDoNotDependOnRanksAndChangeNothing) {
  const auto overrides = [](int stage, bool pictures) {
    std::vector<std::string> all = {"sharding.reduction=EXACT", "training.micro_batch=2", "training.steps=5", "training.trace_steps=4", fmt::format("sharding.stage={}", stage)};
    if (pictures) all.insert(all.end(), {"training.sample_every=2", "training.sample_count=7", "training.sample_steps=3"});
    return all;
  };
  run(job(kUnet, overrides(0, false)), 1, "without");
  run(job(kUnet, overrides(0, true)), 1, "one");
  EXPECT_EQ(summary("one").at("weights_digest"), summary("without").at("weights_digest"));
  EXPECT_EQ(sampled_steps(path("one")), (std::vector<int64_t>{2, 4, 5}));
  for (const auto& [ranks, stage] : {std::pair(2, 1), std::pair(3, 3)}) {
    const std::string out = fmt::format("{}_{}", ranks, stage);
    run(job(kUnet, overrides(stage, true)), ranks, out);
    EXPECT_EQ(summary(out).at("weights_digest"), summary("without").at("weights_digest")) << out;
    for (const int64_t step : sampled_steps(path("one"))) EXPECT_EQ(bytes(sample_path(out, step)), bytes(sample_path("one", step))) << out << " " << step;
  }
  EXPECT_NE(bytes(sample_path("one", 2)), bytes(sample_path("one", 5)));
  // The last one shows what `sample` draws of the finished run.
  ImageSampleOptions options{.count = 7, .seed = 5};
  options.sampler.steps = 3;
  const Sheet sheet = image_sheet({8, 8, 1}, samples("one", options, 2), kSampleColumns);
  EXPECT_EQ(bytes(sample_path("one", 5)), png_of(sheet.size, sheet.pixels));

  // The report shows them and needs nothing else.
  CLI::App app;
  add_overlap_command(app);
  ::testing::internal::CaptureStdout();
  app.parse("overlap " + path("3_3"));
  ::testing::internal::GetCapturedStdout();
  const std::string html = bytes("3_3/report.html");
  for (const int64_t step : {2, 4, 5}) EXPECT_THAT(html, HasSubstr(fmt::format("<figcaption>step {}</figcaption>", step)));
  EXPECT_THAT(html, HasSubstr("default-src 'none'; style-src 'unsafe-inline'; img-src data:\""));
  EXPECT_EQ(html.find("http://"), std::string::npos);
  EXPECT_EQ(html.find("https://"), std::string::npos);
  // The first bytes of every PNG file, in base64, and the last ones of this picture (IEND with its checksum).
  EXPECT_THAT(html, HasSubstr("src=\"data:image/png;base64,iVBORw0KGgo"));
  EXPECT_LT(html.find("<h2>Loss</h2>"), html.find("<h2>Samples</h2>"));
  app.parse("overlap " + path("one"));
  fs::remove_all(path("one") + "/samples");
  app.parse("overlap " + path("one"));
  EXPECT_EQ(bytes("one/report.html").find("<h2>Samples</h2>"), std::string::npos);

  expect_memory_as_predicted(job_of_cell(job(kUnet, {"training.sample_every=1", "training.sample_steps=2"}), 2, 3, 3));
}

TEST_F(DiffusionTimes, BadSettingsAreRefused) {
  EXPECT_THAT(refused("unet {} images {} diffusion { preset: 'flow' loss_aware_times: true }"), HasSubstr("the times of preset flow are continuous"));
  EXPECT_THAT(refused("unet {} images {} diffusion { preset: 'ddpm' loss_aware_times: true loss_history: 0 }"), HasSubstr("diffusion.loss_history is 0"));
  EXPECT_THAT(refused("classifier { noise_levels: true } images {} diffusion { preset: 'ddpm' loss_aware_times: true }"), HasSubstr("is given to classifier"));
  EXPECT_THAT(refused("classifier {} images {} training { sample_every: 1 }"), HasSubstr("training.sample_every is given beside classifier"));
  EXPECT_THAT(refused("transformer {} text {} training { sample_every: 1 }"), HasSubstr("training.sample_every is given beside transformer"));
  EXPECT_THAT(refused("unet {} images {} training { sample_count: 0 }"), HasSubstr("training.sample_count is 0"));
  EXPECT_THAT(refused("unet {} images {} training { sample_every: -1 }"), HasSubstr("training.sample_every is -1"));
}

}  // namespace
}  // namespace rz::tools
