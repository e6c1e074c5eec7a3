// Reflow and distillation through pairs on disk, guidance by a classifier, interpolation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "models/data/npy.h"
#include "models/diffusion/reflow.h"
#include "tests/tools/diffusion_run.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kFlow = "diffusion { preset: 'rectified_flow' }";
const std::vector<std::string> kLong = {"training.steps=200", "training.batch=16", "training.ema_decay=0.95"};

class DiffusionPairs : public DiffusionJob {
 protected:
  void pairs(const std::string& run, const std::string& out, int64_t count, int ranks, int64_t batch = 50) const {
    ImageSampleOptions options;
    options.count = count;
    options.batch = batch;
    options.sampler.steps = 20;
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path(run), comm);
      write_pairs(model, plan_sampling(model, options), options, path(out), comm);
    });
  }
  // Mean over 20 samples.
  double straightness(const std::string& run) const {
    double mean = 0;
    test::run_on_ranks(1, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path(run), comm);
      ImageSampleOptions options{.count = 20};
      options.sampler.steps = 20;
      const SamplingPlan plan = plan_sampling(model, options);
      for (const double v : models::diffusion::straightness(*plan.denoiser, *plan.process.path, plan.grid, start_of_samples(model, plan, options, 0, 20),
                                                            conditioning_of(model, sample_labels(model, options), 0, 20)))
        mean += v / 20;
    });
    return mean;
  }
  // How many of 40 samples have the bright half that their class asks for.
  int right(const std::string& run, ImageSampleOptions options = {}) const {
    options.count = 40;
    const auto images = samples(run, options, 2);
    int count = 0;
    for (size_t i = 0; i < 40; ++i) {
      int64_t upper = 0, lower = 0;
      for (size_t p = 0; p < 64; ++p) (p < 32 ? upper : lower) += images[i * 64 + p];
      count += (upper > lower) == (options.label.value_or(static_cast<int64_t>(i % 2)) == 0);
    }
    return count;
  }
  // Mean squared distance, in levels, of one-step samples from those of twenty steps.
  double one_step_error(const std::string& run, const std::string& reference) const {
    ImageSampleOptions one, many;
    one.count = many.count = 20;
    one.sampler.steps = 1, many.sampler.steps = 20;
    const auto a = samples(run, one, 1), b = samples(reference, many, 1);
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2) / static_cast<double>(a.size());
    return sum;
  }
};

TEST_F(DiffusionPairs, ReflowStraightensAndDistillationNeedsOneStep) {
  run(job(kUnet, kLong, kFlow), 2, "teacher");
  pairs("teacher", "pairs", 301, 1);
  for (const auto& [ranks, batch] : {std::pair(2, 50), std::pair(3, 7)}) {
    const std::string other = fmt::format("pairs_{}", ranks);
    pairs("teacher", other, 301, ranks, batch);
    for (const char* name : {"noise.npy", "images.npy", "labels.npy", "pairs.json"}) EXPECT_EQ(bytes("pairs/" + std::string(name)), bytes(other + "/" + name)) << other << name;
  }
  EXPECT_EQ(bytes("pairs/noise.npy").size() % 64, (301u * 64 * 4) % 64);
  EXPECT_THAT(bytes("pairs/noise.npy").substr(0, 100), HasSubstr("'descr': '<f4', 'fortran_order': False, 'shape': (301, 8, 8, 1), }"));

  std::vector<std::string> again = kLong;
  again.push_back("diffusion.pairs=" + path("pairs"));
  run(job(kUnet, again, kFlow), 2, "from_scratch");
  again.push_back("training.initialize_from=" + path("teacher"));
  run(job(kUnet, again, kFlow), 2, "reflow");
  EXPECT_LT(losses("reflow").front(), 0.5 * losses("from_scratch").front());
  EXPECT_LT(straightness("reflow"), 0.5 * straightness("teacher"));
  EXPECT_LT(one_step_error("reflow", "teacher"), 0.5 * one_step_error("teacher", "teacher"));
  again.push_back("diffusion.distill=true");
  run(job(kUnet, again, kFlow), 2, "distilled");
  EXPECT_LT(one_step_error("distilled", "teacher"), 0.5 * one_step_error("teacher", "teacher"));
  EXPECT_GE(right("distilled"), 38);  // its own default is one step
  for (const int stage : {1, 2, 3}) {
    const std::string out = fmt::format("distilled_{}", stage);
    auto staged = again;
    staged.push_back(fmt::format("sharding.stage={}", stage));
    run(job(kUnet, staged, kFlow), 2, out);
    EXPECT_EQ(summary(out).at("weights_digest"), summary("distilled").at("weights_digest")) << out;
    EXPECT_EQ(summary(out).at("val_loss"), summary("distilled").at("val_loss")) << out;
  }
  // The memory of pairs is planned to the byte, too.
  expect_memory_as_predicted(job_of_cell(job(kUnet, {"diffusion.pairs=" + path("pairs")}, kFlow), 2, 0, 3));
}

TEST_F(DiffusionPairs, InitialWeightsAreThoseOfTheRun) {
  const auto start_of = [&](const std::string& from, const std::string& out, const std::vector<std::string>& more) {
    std::vector<std::string> overrides = {"training.steps=1", "schedule.learning_rate=0", "training.initialize_from=" + path(from)};
    overrides.insert(overrides.end(), more.begin(), more.end());
    run(job(kDit, overrides), 3, out);
  };
  // Nothing is learned: what is saved is what was read.
  run(job(kDit, {"training.ema_decay=0"}), 2, "plain");
  for (const int stage : {0, 3}) {
    const std::string out = fmt::format("copy_{}", stage);
    start_of("plain", out, {fmt::format("sharding.stage={}", stage)});
    EXPECT_EQ(summary(out).at("weights_digest"), summary("plain").at("weights_digest")) << stage;
    ImageSampleOptions options{.count = 4};
    options.sampler.steps = 3;
    EXPECT_EQ(samples(out, options, 1), samples("plain", options, 1)) << "of the average, which began there, too";
  }
  run(job(kDit), 2, "averaged");
  start_of("averaged", "copy", {});
  ImageSampleOptions options{.count = 4};
  options.sampler.steps = 3;
  EXPECT_EQ(samples("copy", options, 1), samples("averaged", options, 1));
  EXPECT_NE(summary("copy").at("weights_digest"), summary("averaged").at("weights_digest")) << "the average, not the last weights";
  start_of("averaged", "bf16", {"training.precision=BF16"});
  EXPECT_EQ(samples("bf16", options, 1), samples("averaged", options, 1)) << "float32 master weights keep every bit";

  for (const auto& error : errors(job(kUnet, {"training.initialize_from=" + path("plain")}), 3)) EXPECT_THAT(error, HasSubstr("is of another model"));
  for (const auto& error : errors(job(kUnet, {"training.initialize_from=" + path("none")}), 3)) EXPECT_THAT(error, HasSubstr("none/job.textproto"));
  EXPECT_FALSE(fs::exists(path("refused")));
}

TEST_F(DiffusionPairs, BadPairsAreNamedOnAllRanks) {
  run(job(kUnet, {}, kFlow), 1, "teacher");
  pairs("teacher", "good", 20, 1);
  const auto expect = [&](const std::string& folder, const std::string& what) {
    for (const auto& error : errors(job(kUnet, {"diffusion.pairs=" + path(folder)}, kFlow), 3))
      EXPECT_THAT(error, AllOf(HasSubstr(what), Not(HasSubstr("\n"))));
    EXPECT_FALSE(fs::exists(path("refused")));
  };
  const auto damaged = [&](const std::string& folder, const std::string& name, const std::string& contents) {
    fs::copy(path("good"), path(folder));
    write(folder + "/" + name, contents);
    return folder;
  };
  const auto array = [](const std::string& type, const std::vector<int64_t>& shape, int64_t size) {
    return models::npy_header(type, shape) + std::string(static_cast<size_t>(size), '\0');
  };
  expect("none", "none/noise.npy: cannot be opened");
  expect(damaged("size", "noise.npy", array("<f4", {20, 7, 8, 1}, 20 * 56 * 4)), "an array of [20, 7, 8, 1]; valid for these pairs: [pairs, 8, 8, 1]");
  expect(damaged("count", "images.npy", array("<f4", {19, 8, 8, 1}, 19 * 64 * 4)), "count/images.npy: an array of [19, 8, 8, 1]; valid for these pairs: [20, 8, 8, 1]");
  expect(damaged("type", "images.npy", array("<f8", {20, 8, 8, 1}, 20 * 64 * 8)), "elements of type <f8; valid: float32");
  expect(damaged("short", "images.npy", array("<f4", {20, 8, 8, 1}, 20 * 64 * 4 - 1)), "promises 5120 bytes, 5119 follow");
  expect(damaged("labels", "labels.npy", array("<i4", {21}, 84)), "labels.npy: labels for 20 pairs must be [20]");
  auto seven = array("<i4", {20}, 80);
  seven[seven.size() - 80 + 12] = 7;
  expect(damaged("label", "labels.npy", seven), "label 7 of pair 3 is not in [0, 2)");
  auto nan = array("<f4", {20, 8, 8, 1}, 20 * 64 * 4);
  for (int i = 1; i <= 4; ++i) nan[nan.size() - static_cast<size_t>(i)] = '\xFF';
  expect(damaged("nan", "images.npy", nan), "nan/images.npy: pair 19 holds");
  const auto single = damaged("single", "labels.npy", array("<i4", {1}, 4));
  for (const char* name : {"/noise.npy", "/images.npy"}) write(single + name, array("<f4", {1, 8, 8, 1}, 256));
  expect(single, "1 pairs are too few");

  EXPECT_THAT(refused("unet {} images {} diffusion { preset: 'edm' pairs: 'a' }"), HasSubstr("path edm begins at t = 1 with a = 1"));
  EXPECT_THAT(refused("unet {} images {} diffusion { distill: true }"), HasSubstr("diffusion.distill is true without diffusion.pairs"));
  EXPECT_THAT(refused("classifier { noise_levels: true } images {} diffusion { pairs: 'a' }"), HasSubstr("diffusion.pairs is given to classifier"));

  const auto refused_pairs = [&](const std::string& run, const std::string& folder,
                                 const std::function<void(ImageSampleOptions&)>& change) {
    return test::errors_on_ranks(3, {}, [&](comm::Communicator& comm) {
      ImageSampleOptions options{.count = 3};
      change(options);
      TrainedDiffusion model = load_diffusion(path(run), comm);
      write_pairs(model, plan_sampling(model, options), options, path(folder), comm);
    });
  };
  for (const auto& e : refused_pairs("teacher", "good", [](auto&) {})) EXPECT_THAT(e, HasSubstr("holds noise.npy already"));
  run(job(kUnet, {}, "diffusion { preset: 'ddpm' }"), 1, "ddpm");
  for (const auto& e : refused_pairs("ddpm", "new", [](auto& o) { o.sampler.steps = 5; })) EXPECT_THAT(e, HasSubstr("use a flow"));
  for (const auto& e : refused_pairs("teacher", "new2", [](auto& o) { o.sampler.steps = 5; o.sampler.eta = 0.5; })) EXPECT_THAT(e, HasSubstr("deterministic"));
}

TEST_F(DiffusionPairs, AClassifierOfNoisedImagesGuides) {
  std::vector<std::string> alone = kLong;
  alone.push_back("diffusion.conditional=false");
  run(job(kUnet, alone, kFlow), 2, "unconditional");
  run(job("classifier { width1: 4 width2: 8 features: 16 noise_levels: true }", {"training.steps=200", "training.batch=16"}, kFlow), 2, "guide");
  run(job("classifier { width1: 4 width2: 8 features: 16 noise_levels: true }", {"training.steps=200", "training.batch=16"}, "diffusion { preset: 'vp_sde' }"), 2, "vp_guide");
  run(job("classifier { width1: 4 width2: 8 features: 16 }", {}, ""), 1, "clean");
  const auto guided = [&](double scale, const std::string& guide) {
    ImageSampleOptions options;
    options.guide = path(guide);
    options.classifier_guidance = scale;
    options.sampler.steps = 15;
    return options;
  };
  const int none = right("unconditional", guided(0, "guide")), one = right("unconditional", guided(1, "guide")), two = right("unconditional", guided(2, "guide"));
  EXPECT_LE(none, 30);  // a coin's throws
  EXPECT_GE(one, none + 4);
  EXPECT_GE(two, 35);
  auto all_of_one = guided(2, "guide");
  all_of_one.label = 1;
  EXPECT_GE(right("unconditional", all_of_one), 28);
  // Scale 0 changes nothing that can be seen; ranks and batches change nothing at all.
  ImageSampleOptions plain;
  plain.count = 7;
  plain.sampler.steps = 15;
  auto zero = guided(0, "guide"), few = guided(2, "guide");
  zero.count = few.count = 7;
  EXPECT_EQ(samples("unconditional", zero, 1), samples("unconditional", plain, 1));
  const auto images = samples("unconditional", few, 1);
  few.batch = 2;
  EXPECT_EQ(samples("unconditional", few, 3), images);
  // A guide of another path speaks of the same noise: below t = 1, where that path ends.
  auto other = guided(2, "vp_guide");
  other.preset = "edm";
  EXPECT_GE(right("unconditional", other), 33);

  ImageSampleOptions wrong;
  wrong.count = 2;
  wrong.classifier_guidance = 1;
  EXPECT_THAT(sampling_error("unconditional", wrong), HasSubstr("give --guide RUN"));
  wrong.guide = path("clean");
  EXPECT_THAT(sampling_error("unconditional", wrong), HasSubstr("trained no classifier with noise levels"));
  wrong.guide = path("none");
  EXPECT_THAT(sampling_error("unconditional", wrong), HasSubstr("none/job.textproto"));
  wrong.guide = path("guide");
  wrong.label = 2;
  EXPECT_THAT(sampling_error("unconditional", wrong), HasSubstr("class 2 is not in [0, 2)"));
  write("guide/images.json", R"({"height": 10, "width": 8, "channels": 1, "padding": 0, "class_names": ["0", "1"], "sigma_data": 0.5})");
  wrong.label.reset();
  EXPECT_THAT(sampling_error("unconditional", wrong), HasSubstr("was trained on images of 10 x 8 x 1 in 2 classes; these are 8 x 8 x 1 in 2"));
}

TEST_F(DiffusionPairs, InterpolationGoesFromOneSampleToAnother) {
  run(job(kUnet, kLong, kFlow), 2, "run");
  const auto between = [&](const ImageSampleOptions& options, int64_t a, int64_t b, int ranks) {
    std::vector<uint8_t> images;
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path("run"), comm);
      const auto mine = interpolate_images(model, plan_sampling(model, options), options, a, b, comm);
      if (comm.rank() == 0) images = mine;
    });
    return images;
  };
  ImageSampleOptions options{.label = 0, .count = 9};
  options.sampler.steps = 10;
  const auto way = between(options, 1, 6, 1);
  ASSERT_EQ(way.size(), 9u * 64);
  EXPECT_EQ(between(options, 1, 6, 3), way);
  const auto drawn = samples("run", options, 1);
  const auto image = [](const std::vector<uint8_t>& all, size_t i) { return std::vector<uint8_t>(all.begin() + static_cast<int64_t>(i) * 64, all.begin() + static_cast<int64_t>(i + 1) * 64); };
  EXPECT_EQ(image(way, 0), image(drawn, 1));
  EXPECT_EQ(image(way, 8), image(drawn, 6));
  EXPECT_NE(image(way, 4), image(way, 0));
  const auto back = between(options, 6, 1, 1);
  EXPECT_EQ(image(back, 0), image(way, 8));
  // The steps on the way are small beside the whole of it.
  const auto distance = [&](size_t i, size_t j) {
    double sum = 0;
    for (size_t p = 0; p < 64; ++p) sum += std::pow(static_cast<double>(way[i * 64 + p]) - static_cast<double>(way[j * 64 + p]), 2);
    return std::sqrt(sum);
  };
  for (size_t i = 0; i < 8; ++i) EXPECT_LT(distance(i, i + 1), distance(0, 8)) << i;
  const auto refused = [&](const std::function<void(ImageSampleOptions&)>& change, int64_t a, int64_t b) {
    ImageSampleOptions o{.count = 4};
    o.sampler.steps = 4;
    change(o);
    return test::errors_on_ranks(2, {}, [&](comm::Communicator& comm) {
      TrainedDiffusion model = load_diffusion(path("run"), comm);
      interpolate_images(model, plan_sampling(model, o), o, a, b, comm);
    })[1];
  };
  EXPECT_THAT(refused([](auto& o) { o.sampler.eta = 1; }, 0, 1), HasSubstr("interpolation needs a deterministic sampler"));
  EXPECT_THAT(refused([](auto& o) { o.count = 1; }, 0, 1), HasSubstr("1 images are too few"));
  EXPECT_THAT(refused([](auto&) {}, 0, -1), HasSubstr("not from 0 to -1"));
}

}  // namespace
}  // namespace rz::tools
