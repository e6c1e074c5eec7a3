// ringzero evaluate: what it reports, the same from any number of ranks; and bad input of it and of the images it needs, named on all ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tools/diffusion_run.h"
#include "tools/evaluate.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

const std::string kClassifier = "classifier { width1: 4 width2: 8 features: 8 }";

class Evaluate : public DiffusionJob {
 protected:
  EvaluateOptions options(const std::string& run, const std::string& classifier) const {
    EvaluateOptions o;
    o.run = path(run);
    o.classifier = path(classifier);
    o.sampling.count = 12;
    o.sampling.sampler.steps = 4;
    o.json = true;
    return o;
  }
  nlohmann::json evaluated(const EvaluateOptions& o, int ranks) const {
    ::testing::internal::CaptureStdout();
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) { evaluate_run(o, comm); });
    const auto printed = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
    EXPECT_EQ(printed, nlohmann::json::parse(std::ifstream(o.run + "/evaluation.json")));
    return printed;
  }
  std::vector<std::string> refusals(const EvaluateOptions& o) const {
    return test::errors_on_ranks(3, {}, [&](comm::Communicator& comm) { evaluate_run(o, comm); });
  }
};

TEST_F(Evaluate, ReportsTheSameFromAnyNumberOfRanks) {
  run(job(kUnet, {"training.steps=60", "diffusion.preset=flow"}), 2, "run");
  run(job(kClassifier, {"training.steps=60"}, ""), 2, "classifier");
  run(job("classifier { width1: 4 width2: 8 features: 8 noise_levels: true }", {}, "diffusion { preset: 'flow' }"), 1, "guide");
  auto o = options("run", "classifier");
  o.likelihood = 2;
  auto one = evaluated(o, 1), three = evaluated(o, 3);
  for (auto* j : {&one, &three}) j->erase("sampling_seconds");
  EXPECT_EQ(one, three);
  EXPECT_GE(one.at("floor").at("class_accuracy").get<double>(), 0.99);
  EXPECT_GT(one.at("anchor").at("frechet_distance").get<double>(), 0);
  EXPECT_GT(one.at("generated").at("frechet_distance").get<double>(), one.at("floor").at("frechet_distance").get<double>());
  EXPECT_GT(one.at("straightness").at("mean").get<double>(), 0);
  EXPECT_EQ(one.at("straightness").at("samples"), 12);
  EXPECT_EQ(one.at("bits_per_dimension").at("images"), 2);
  // A path without straight lines has no straightness; a guide is named.
  auto edm = options("run", "classifier");
  edm.sampling.preset = "edm";
  EXPECT_FALSE(evaluated(edm, 2).contains("straightness"));
  auto guided = options("run", "classifier");
  guided.sampling.guide = path("guide");
  guided.sampling.classifier_guidance = 3;
  const auto report = evaluated(guided, 2);
  EXPECT_EQ(report.at("classifier_guidance"), 3);
  EXPECT_NE(report.at("digest"), one.at("digest"));
}

TEST_F(Evaluate, BadInputIsNamedOnAllRanks) {
  run(job(kUnet), 1, "run");
  run(job(kClassifier, {}, ""), 1, "classifier");
  run(job("classifier { width1: 4 width2: 8 features: 8 noise_levels: true }", {}, ""), 1, "noisy");
  const auto expect = [&](const EvaluateOptions& o, const std::string& what) {
    const auto all = refusals(o);
    ASSERT_EQ(all.size(), 3u);
    EXPECT_THAT(all, Each(AllOf(HasSubstr(what), Not(HasSubstr("\n")))));
    EXPECT_FALSE(fs::exists(o.run + "/evaluation.json"));
  };
  expect(options("none", "classifier"), "none/job.textproto");
  expect(options("run", "none"), "none/job.textproto");
  expect(options("classifier", "classifier"), "classifier trained no diffusion model");
  expect(options("run", "run"), "run trained no classifier without noise levels");
  expect(options("run", "noisy"), "noisy trained no classifier without noise levels");
  const auto with = [&](const std::function<void(EvaluateOptions&)>& change) {
    auto o = options("run", "classifier");
    change(o);
    return o;
  };
  expect(with([](auto& o) { o.sampling.count = 0; }), "0 samples in batches of 50");
  expect(with([](auto& o) { o.sampling.count = 3; }), "more than 3 of each are needed");
  expect(with([](auto& o) { o.reference = 2; }), "2 reference images");
  expect(with([](auto& o) { o.likelihood = 7; }), "the likelihood of 7 images: there are 6 validation images");
  expect(with([](auto& o) { o.likelihood = -1; }), "the likelihood of -1 images");
  expect(with([](auto& o) { o.sampling.preset = "dpm"; }), "unknown preset 'dpm'; valid: ddpm");
  expect(with([](auto& o) { o.sampling.preset = "vp_sde", o.sampling.sampler.method = "annealed_langevin"; }), "annealed Langevin keeps the scale");
  expect(with([](auto& o) { o.sampling.sampler.method = "euler_maruyama"; }), "use euler, heun");
  expect(with([](auto& o) { o.sampling.label = 5; }), "class 5 is not in [0, 2)");
  expect(with([](auto& o) { o.sampling.classifier_guidance = 1; }), "give --guide RUN");
  expect(with([&](auto& o) { o.sampling.guide = path("classifier"); }), "trained no classifier with noise levels");
  write("noisy/images.json", "{}");
  expect(with([&](auto& o) { o.sampling.guide = path("noisy"); }), "noisy/images.json: does not describe images");
  // The judge must know the images; the data must still be there.
  write("classifier/images.json", R"({"height": 8, "width": 8, "channels": 1, "padding": 0, "class_names": ["0", "1", "2"], "sigma_data": 0.5})");
  expect(options("run", "classifier"), "was trained on images of 8 x 8 x 1 in 3 classes; these are 8 x 8 x 1 in 2");
  fs::remove(path("x.npy"));
  expect(options("run", "classifier"), "x.npy: cannot be opened");
}

TEST_F(Evaluate, ImagesThatCannotBeAreNamedOnAllRanks) {
  const auto expect = [&](const std::vector<std::string>& overrides, const std::string& what, const std::string& model = kUnet) {
    std::vector<std::string> all = {"images.npy=", "images.npy_labels="};
    all.insert(all.end(), overrides.begin(), overrides.end());
    const auto found = errors(job(model, all, model == kUnet ? "diffusion {}" : ""), 3);
    ASSERT_EQ(found.size(), 3u);
    EXPECT_THAT(found, Each(AllOf(HasSubstr(what), Not(HasSubstr("\n")))));
    EXPECT_FALSE(fs::exists(path("refused")));
  };
  const auto array = [&](const std::string& name) { return "images.npy=" + path(name); };
  // Image sizes that do not fit the network, or each other.
  const auto varied = [](size_t count) {
    std::string pixels;
    for (size_t i = 0; i < count; ++i) pixels += static_cast<char>(i % 251);
    return pixels;
  };
  write("odd.npy", npy("60, 7, 8", varied(60 * 56)));
  expect({array("odd.npy")}, "images of 7 x 8 pixels do not divide into patches of 2 x 2");
  expect({array("odd.npy")}, "7 x 8", "dit { layers: 1 width: 12 heads: 3 patch: 4 }");
  write("small.npy", npy("60, 2, 2", varied(240)));
  expect({array("small.npy")}, "2 x 2", kClassifier);
  write("float.npy", npy("60, 8, 8", std::string(60 * 64, '\1')).replace(10 + 11, 3, "<f4"));
  expect({array("float.npy")}, "elements of type <f4; valid: uint8 levels");
  write("gray.npy", npy("60, 8, 8", std::string(60 * 64, '\1')));
  expect({array("gray.npy")}, "all values of the training images are equal");
  // Labels.
  write("text.npy", "no array");
  expect({"images.npy=" + path("x.npy"), "images.npy_labels=" + path("text.npy")}, "text.npy: 8 bytes are no .npy file");
  std::string labels(120, '\0');
  labels[1] = 1;  // 256
  write("wide.npy", npy("60,", labels).replace(10 + 11, 3, "<i2"));
  expect({"images.npy=" + path("x.npy"), "images.npy_labels=" + path("wide.npy")}, "label 256 of image 0 is not in [0, 256)");
  labels[1] = '\xFF';
  write("negative.npy", npy("60,", labels).replace(10 + 11, 3, "<i2"));
  expect({"images.npy=" + path("x.npy"), "images.npy_labels=" + path("negative.npy")}, "label -256 of image 0");
  // Fashion-MNIST's files.
  fs::create_directories(path("idx"));
  expect({"images.idx=" + path("idx")}, "idx/train-images-idx3-ubyte.gz: cannot be opened");
  for (const char* name : {"train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"})
    write(fmt::format("idx/{}-ubyte.gz", name), "\x1f\x8b\x08 but the rest is no gzip");
  expect({"images.idx=" + path("idx")}, "train-images-idx3-ubyte.gz: corrupt gzip");
  // Folders.
  fs::create_directories(path("folder/a"));
  expect({"images.folder=" + path("folder")}, "there is no PNG file");
  for (const char* name : {"1", "2", "3", "4"}) write(fmt::format("folder/a/{}.png", name), "no picture");
  expect({"images.folder=" + path("folder"), "images.validation_fraction=0.5"}, "folder/a/1.png");
  expect({"images.folder=" + path("nowhere")}, "nowhere");
}

}  // namespace
}  // namespace rz::tools
