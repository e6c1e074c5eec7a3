// Jobs that train on images: learning, the same bits in every stage, plans to the byte, samples that depend on no rank, bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/tools/diffusion_run.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST_F(DiffusionJob, EveryStageGivesTheSameBits) {
  for (const auto& [name, model] : {std::pair("unet", kUnet), std::pair("dit", kDit)}) {
    for (const int ranks : {1, 2, 3}) {
      const std::string reference = fmt::format("{}_{}", name, ranks);
      run(job(model), ranks, reference);
      for (const int stage : {1, 2, 3}) {
        const std::string out = fmt::format("{}_{}_{}", name, ranks, stage);
        run(job(model, {fmt::format("sharding.stage={}", stage)}), ranks, out);
        EXPECT_EQ(summary(out).at("weights_digest"), summary(reference).at("weights_digest")) << out;
        EXPECT_EQ(summary(out).at("val_loss"), summary(reference).at("val_loss")) << out;
        EXPECT_EQ(losses(out), losses(reference)) << out;
      }
      // The batch is the same for any number of ranks; only sums are rounded differently.
      const auto one = losses(fmt::format("{}_1", name)), here = losses(reference);
      ASSERT_EQ(one.size(), here.size());
      for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(here[i], one[i], 1e-4 * one[i]) << reference << " step " << i;
    }
  }
}

TEST_F(DiffusionJob, PresetsPrecisionsRecomputationAndResuming) {
  for (const std::string preset : {"iddpm", "edm", "ve_sde"}) {
    run(job(kUnet, {"diffusion.preset=" + preset}), 2, preset);
    for (const double loss : losses(preset)) EXPECT_TRUE(std::isfinite(loss)) << preset;
  }
  run(job(kDit), 2, "kept");
  run(job(kDit, {"training.recompute=FULL"}), 2, "again");
  EXPECT_EQ(summary("again").at("weights_digest"), summary("kept").at("weights_digest"));
  run(job(kDit, {"training.steps=2", "schedule.kind=CONSTANT"}), 2, "part");
  run(job(kDit, {"schedule.kind=CONSTANT"}), 2, "part", true);
  run(job(kDit, {"schedule.kind=CONSTANT"}), 2, "whole");
  EXPECT_EQ(summary("part").at("weights_digest"), summary("whole").at("weights_digest"));
  run(job(kUnet, {"training.precision=BF16"}), 2, "bf16");
  run(job(kUnet, {"training.precision=BF16", "sharding.stage=3"}), 2, "bf16_3");
  EXPECT_EQ(summary("bf16").at("weights_digest"), summary("bf16_3").at("weights_digest"));
}

TEST_F(DiffusionJob, LearnsAndSamplesByClass) {
  run(job(kUnet, {"training.steps=250", "training.batch=16", "diffusion.preset=flow", "training.ema_decay=0.95"}), 2, "run");
  const auto all = losses("run");
  EXPECT_LT(all.back(), 0.5 * all.front());
  EXPECT_EQ(summary("run").at("images_per_s").is_number(), true);

  ImageSampleOptions options;
  options.count = 11;
  options.sampler.steps = 10;
  const auto images = samples("run", options, 1);
  ASSERT_EQ(images.size(), 11u * 64);
  // Sample i is of class i mod 2: its bright half says so.
  int right = 0;
  for (size_t i = 0; i < 11; ++i) {
    int64_t upper = 0, lower = 0;
    for (size_t p = 0; p < 64; ++p) (p < 32 ? upper : lower) += images[i * 64 + p];
    right += (upper > lower) == (i % 2 == 0);
  }
  EXPECT_GE(right, 10);
  // Neither ranks nor batches show.
  for (const auto& [ranks, batch] : {std::pair(2, 50), std::pair(3, 1), std::pair(1, 4)}) {
    options.batch = batch;
    EXPECT_EQ(samples("run", options, ranks), images) << ranks << " ranks, batches of " << batch;
  }
  options.seed = 1;
  EXPECT_NE(samples("run", options, 1), images);
  options.seed = 0;
  options.guidance = 2;
  const auto guided = samples("run", options, 1);
  EXPECT_NE(guided, images);
  EXPECT_EQ(samples("run", options, 3), guided);
  // Other processes of the same network, noise in their steps included.
  for (const std::string preset : {"edm", "vp_sde"}) {
    ImageSampleOptions other;
    other.count = 5;
    other.sampler.steps = 8;
    other.preset = preset;
    EXPECT_EQ(samples("run", other, 3), samples("run", other, 1)) << preset;
  }
}

TEST_F(DiffusionJob, SamplingErrorsSayWhatIsWrong) {
  run(job(kUnet), 1, "run");
  run(job(kUnet, {"diffusion.conditional=false"}), 1, "alone");
  const auto with = [](const std::function<void(ImageSampleOptions&)>& change) {
    ImageSampleOptions o;
    o.count = 2;
    o.sampler.steps = 2;
    change(o);
    return o;
  };
  EXPECT_THAT(sampling_error("run", with([](auto& o) { o.preset = "dpm"; })), HasSubstr("unknown preset 'dpm'; valid: ddpm"));
  EXPECT_THAT(sampling_error("run", with([](auto& o) { o.sampler.method = "euler_maruyama"; })), HasSubstr("use euler, heun"));
  EXPECT_THAT(sampling_error("run", with([](auto& o) { o.sampler.variance = "learned"; o.sampler.eta = 1; })), HasSubstr("learned range"));
  EXPECT_THAT(sampling_error("run", with([](auto& o) { o.label = 2; })), HasSubstr("class 2 is not in [0, 2)"));
  EXPECT_THAT(sampling_error("run", with([](auto& o) { o.count = 0; })), HasSubstr("0 samples"));
  EXPECT_THAT(sampling_error("alone", with([](auto& o) { o.guidance = 2; })), HasSubstr("not conditional"));
  EXPECT_THAT(sampling_error("alone", with([](auto& o) { o.label = 0; })), HasSubstr("not conditional"));
  write("alone/images.json", "{\"height\": 8}");
  EXPECT_THAT(sampling_error("alone", with([](auto&) {})), HasSubstr("images.json"));
}

TEST_F(DiffusionJob, ADryRunPredictsEveryByte) {
  for (const std::string& model : {kUnet, kDit, std::string("classifier { width1: 4 width2: 8 features: 8 }")}) {
    for (const int64_t stage : {0, 3}) {
      SCOPED_TRACE(fmt::format("{} stage {}", model, stage));
      expect_memory_as_predicted(job_of_cell(job(model, {}, model[0] == 'c' ? "" : "diffusion {}"), 2, stage, 3));
    }
  }
}

TEST_F(DiffusionJob, ClassifiersLearn) {
  run(job("classifier { width1: 4 width2: 8 features: 16 }", {"training.steps=60"}, ""), 2, "plain");
  EXPECT_LT(summary("plain").at("val_loss").get<double>(), 0.1);
  run(job("classifier { width1: 4 width2: 8 features: 16 noise_levels: true }", {"training.steps=150", "training.batch=16"}, ""), 2, "noised");
  EXPECT_LT(summary("noised").at("val_loss").get<double>(), 0.6);  // log 2 is what an untrained one has
}

TEST_F(DiffusionJob, BadJobsAreRefusedWhereTheyAreWritten) {
  EXPECT_THAT(refused("unet {} text {}"), HasSubstr("text is given to unet; valid: images"));
  EXPECT_THAT(refused("transformer {} images {}"), HasSubstr("images is given to transformer; valid: text"));
  EXPECT_THAT(refused("transformer {} text {} diffusion {}"), HasSubstr("diffusion is given beside transformer"));
  EXPECT_THAT(refused("classifier {} images {} diffusion {}"), HasSubstr("without noise_levels"));
  EXPECT_THAT(refused("unet {} images {} diffusion { preset: 'dpm' }"), HasSubstr("diffusion.preset is 'dpm'; valid: ddpm, ddim"));
  EXPECT_THAT(refused("unet {} images {} diffusion { preset: 'flow' timesteps: 10 }"), HasSubstr("preset flow has no number of timesteps"));
  EXPECT_THAT(refused("unet {} images {} diffusion { label_drop: 2 }"), HasSubstr("diffusion.label_drop is 2"));
  EXPECT_THAT(refused("unet { width: 7 } images {}"), HasSubstr("unet.width is 7; valid: an even number"));
  EXPECT_THAT(refused("dit { width: 30 } images {}"), HasSubstr("dit.width is 30; valid: a multiple of 4"));
  EXPECT_THAT(refused("dit {} images { folder: 'a' npy: 'b' }"), HasSubstr("several sources"));
  EXPECT_THAT(refused("dit {} images {} training { recompute: SQRT }"), HasSubstr("training.recompute is SQRT; dit has NONE and FULL"));
  EXPECT_EQ(refused("dit {} images {} training { recompute: FULL }"), "accepted");
}

TEST_F(DiffusionJob, BadDataIsNamedOnAllRanks) {
  const auto expect = [&](const ringzero::Job& j, const std::string& what) {
    for (const auto& error : errors(j, 3)) EXPECT_THAT(error, HasSubstr(what));
    EXPECT_FALSE(fs::exists(path("refused")));
  };
  expect(job("unet { width: 8 patch: 3 }"), "images of 8 x 8 pixels do not divide into patches of 3 x 3");
  expect(job("unet { width: 8 multipliers: [1, 1, 1, 1, 1] }"), "take fewer multipliers");
  expect(job(kUnet, {"images.npy=" + path("none.npy"), "images.npy_labels="}), "none.npy: cannot be opened");
  fs::create_directories(root_ / "empty");
  expect(job(kUnet, {"images.npy=", "images.npy_labels=", "images.folder=" + path("empty")}), "there is no PNG file");
  write("y.npy", npy("59,", std::string(59, '\0')));
  expect(job(kUnet), "labels for 60 images must be [60]");
}

}  // namespace
}  // namespace rz::tools
