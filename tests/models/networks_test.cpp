// The image networks: whole-network gradients in float64, what they return before training, conditioning, shapes, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <set>

#include "models/diffusion/classifier.h"
#include "models/diffusion/dit.h"
#include "models/diffusion/unet.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/reduction.h"
#include "tests/support/gradcheck.h"

namespace rz::models::diffusion {
namespace {

using test::random_tensor;
using test::values_of;
using testing::HasSubstr;
using testing::ThrowsMessage;

UNetConfig small_unet() {
  UNetConfig c;
  c.image = {4, 8, 2};
  c.width = 4;
  c.multipliers = {1, 2};
  c.blocks = 1;
  c.attention_heights = {2};
  c.head_width = 4;
  c.classes = 3;
  return c;
}

DiTConfig small_dit() {
  DiTConfig c;
  c.image = {4, 6, 2};
  c.patch = 2;
  c.layers = 2;
  c.width = 8;
  c.heads = 2;
  c.mlp_width = 12;
  c.classes = 3;
  return c;
}

struct Kind {
  std::string name;
  std::function<std::unique_ptr<ImageNetwork>()> make;
};

std::vector<Kind> kinds() {
  const auto unet = [](auto change) {
    UNetConfig c = small_unet();
    change(c);
    return [c] { return std::make_unique<UNet>(c); };
  };
  const auto dit = [](auto change) {
    DiTConfig c = small_dit();
    change(c);
    return [c] { return std::make_unique<DiT>(c); };
  };
  return {{"unet", unet([](auto&) {})},
          {"unet_added_condition_patch", unet([](auto& c) {
             c.scale_shift = false, c.patch = 2, c.multipliers = {1, 1}, c.attention_heights = {};
           })},
          {"unet_learned_variance_recomputed", unet([](auto& c) { c.out_channels = 4, c.recompute = true; })},
          {"dit", dit([](auto&) {})},
          {"dit_learned_variance_recomputed", dit([](auto& c) { c.out_channels = 4, c.recompute = true; })}};
}

// Weights away from zero, so that every path carries signal.
void stir(nn::Module& module) {
  for (nn::Parameter* p : module.parameters()) {
    const Random random(5, p->name);
    for (int64_t i = 0; i < p->numel(); ++i) {
      const double more = 0.2 * random.normal(static_cast<uint64_t>(i));
      if (p->value.dtype() == DType::f64)
        p->value.data<double>()[i] += more;
      else
        p->value.data<float>()[i] += static_cast<float>(more);
    }
  }
}

Tensor some_images(const ImageNetwork& network, int64_t count, DType dtype, uint64_t seed = 1) {
  const ImageShape& s = network.image();
  return random_tensor({count, s.height, s.width, s.channels}, seed, -1, 1, dtype);
}
Tensor labels(std::vector<int32_t> values) {
  const auto count = static_cast<int64_t>(values.size());
  return Tensor::of<int32_t>({count}, values);
}

// Some elements of every leaf against central differences of `loss`.
void expect_leaf_gradients(const std::vector<std::pair<std::string, Tensor>>& leaves, const std::function<Tensor()>& loss) {
  autograd::backward(loss());
  autograd::NoGrad no_grad;
  constexpr double kStep = 1e-5;
  constexpr int64_t kPerLeaf = 9;
  for (const auto& [name, leaf] : leaves) {
    const Tensor gradient = autograd::grad_of(leaf);
    ASSERT_TRUE(gradient.defined()) << name;
    double largest = 0;
    for (const double g : values_of(gradient)) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 1e-7) << name << " got no gradient worth the name";
    const int64_t stride = std::max<int64_t>(1, leaf.numel() / kPerLeaf);
    for (int64_t i = stride / 2; i < leaf.numel(); i += stride) {
      double& w = leaf.data<double>()[i];
      const double before = w;
      w = before + kStep;
      const double high = loss().item();
      w = before - kStep;
      const double low = loss().item();
      w = before;
      const double numeric = (high - low) / (2 * kStep);
      ASSERT_NEAR(gradient.data<double>()[i], numeric, 1e-6 * std::max(1.0, std::abs(numeric))) << name << " element " << i;
    }
  }
}

class Networks : public testing::TestWithParam<size_t> {
 protected:
  std::unique_ptr<ImageNetwork> make() const { return kinds()[GetParam()].make(); }
};
INSTANTIATE_TEST_SUITE_P(All, Networks, testing::Range<size_t>(0, 5), [](const auto& info) { return kinds()[info.param].name; });

TEST_P(Networks, WholeNetworkGradientsMatchFiniteDifferences) {
  const auto network = make();
  network->materialize(3, DType::f64);
  stir(*network);
  Tensor x = some_images(*network, 3, DType::f64);
  autograd::set_requires_grad(x, true);
  const Tensor noise = Tensor::of<double>({3}, {0.3, 40, 700});
  // Every class and the null class occur, so that every row of the table has a gradient somewhere.
  const Conditioning conditioning{labels({0, 2, 3})};
  std::vector<std::pair<std::string, Tensor>> leaves{{"x", x}};
  for (nn::Parameter* p : network->parameters()) leaves.emplace_back(p->name, p->value);
  const Tensor weights = random_tensor(network->forward(x, noise, conditioning).shape(), 7);
  expect_leaf_gradients(leaves, [&] { return ops::sum(ops::mul(network->forward(x, noise, conditioning), weights)); });
}

TEST_P(Networks, ReturnZeroBeforeTraining) {
  const auto network = make();
  network->materialize(1);
  autograd::NoGrad no_grad;
  const Tensor y = network->forward(some_images(*network, 2, DType::f32), Tensor::of<float>({2}, {1, 900}), {labels({1, 2})});
  EXPECT_EQ(y.shape(), (Shape{2, network->image().height, network->image().width, network->out_channels()}));
  for (const double v : values_of(y)) EXPECT_EQ(v, 0);
}

TEST_P(Networks, DependOnNoiseAndLabelAndTreatNoneAsNull) {
  const auto network = make();
  network->materialize(1);
  stir(*network);
  autograd::NoGrad no_grad;
  const Tensor x = some_images(*network, 2, DType::f32), noise = Tensor::of<float>({2}, {1, 900});
  const auto run = [&](const Tensor& n, const Conditioning& c) { return values_of(network->forward(x, n, c)); };
  const auto base = run(noise, {labels({1, 2})});
  EXPECT_NE(base, run(Tensor::of<float>({2}, {1.5, 900}), {labels({1, 2})}));
  EXPECT_NE(base, run(noise, {labels({0, 2})}));
  EXPECT_EQ(run(noise, {}), run(noise, {labels({network->null_label(), network->null_label()})}));
  EXPECT_NE(run(noise, {}), base);
}

TEST_P(Networks, ASamplesOutputDoesNotDependOnTheOthers) {
  const auto network = make();
  network->materialize(1);
  stir(*network);
  autograd::NoGrad no_grad;
  const Tensor x = some_images(*network, 3, DType::f32), noise = Tensor::of<float>({3}, {1, 30, 900}), ids = labels({1, 2, 0});
  const auto whole = values_of(network->forward(x, noise, {ids}));
  const auto second = values_of(network->forward(x.view_slice(0, 1, 2), noise.view_slice(0, 1, 2), {ids.view_slice(0, 1, 2)}));
  for (size_t i = 0; i < second.size(); ++i) EXPECT_EQ(second[i], whole[second.size() + i]) << i;
}

TEST_P(Networks, SixteenBitWeightsAgreeRoughly) {
  const auto network = make();
  network->materialize(1);
  autograd::NoGrad no_grad;
  const Tensor noise = Tensor::of<float>({2}, {1, 900});
  const Tensor x = some_images(*network, 2, DType::f32);
  stir(*network);
  const auto want = values_of(network->forward(x, noise, {labels({1, 2})}));
  const auto narrow = make();
  narrow->materialize(1, DType::bf16);
  for (nn::Parameter* p : narrow->parameters()) {
    const Tensor& from = network->parameter(p->name).value;
    for (int64_t i = 0; i < p->numel(); ++i) p->value.data<bf16>()[i] = static_cast<bf16>(from.data<float>()[i]);
  }
  const Tensor y = narrow->forward(some_images(*network, 2, DType::bf16), noise, {labels({1, 2})});
  EXPECT_EQ(y.dtype(), DType::bf16);
  const auto got = values_of(y);
  double scale = 0;
  for (const double v : want) scale = std::max(scale, std::abs(v));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 0.1 * scale) << i;
}

TEST_P(Networks, NameWhatDoesNotFit) {
  const auto network = make();
  network->materialize(1);
  const Tensor noise = Tensor::of<float>({2}, {1, 2});
  const Tensor x = some_images(*network, 2, DType::f32);
  EXPECT_THAT([&] { network->forward(x.view_slice(1, 0, 3), noise, {}); }, ThrowsMessage<Error>(HasSubstr("f32[2, 3, ")));
  EXPECT_THAT([&] { network->forward(x, noise.view_slice(0, 0, 1), {}); }, ThrowsMessage<Error>(HasSubstr("noise levels f32[1]")));
  EXPECT_THAT([&] { network->forward(x, {}, {}); }, ThrowsMessage<Error>(HasSubstr("noise levels")));
  EXPECT_THAT([&] { network->forward(x, noise, {labels({1})}); }, ThrowsMessage<Error>(HasSubstr("labels i32[1]")));
  EXPECT_THAT([&] { network->forward(x, noise, {labels({1, 4})}); }, ThrowsMessage<Error>(HasSubstr("4")));
}

TEST_P(Networks, UnitsHoldAllButTheOutermostParameters) {
  const auto network = make();
  std::set<nn::Parameter*> seen;
  for (const nn::Unit& unit : network->units())
    for (nn::Parameter* p : unit.module->parameters()) {
      EXPECT_TRUE(seen.insert(p).second) << p->name << " is in two units";
      EXPECT_EQ(p->name.rfind(unit.name + ".", 0), 0u) << p->name << " in " << unit.name;
    }
  EXPECT_GE(seen.size(), 20u);
  EXPECT_LT(seen.size(), network->parameters().size());
}

TEST(UNet, ParameterCountsAreTheFormula) {
  UNetConfig c;
  c.width = 32;
  c.multipliers = {1, 2, 2};
  c.middle_attention = true;
  UNet network(c);
  const auto conv = [](int64_t in, int64_t out) { return 9 * in * out + out; };
  const auto block = [&](int64_t in, int64_t out) {
    return 2 * in + conv(in, out) + 128 * 2 * out + 2 * out + 2 * out + conv(out, out) + (in == out ? 0 : in * out + out);
  };
  const auto attention = [](int64_t d) { return 2 * d + 4 * d * d + 4 * d; };
  int64_t want = conv(1, 32) + (32 * 128 + 128) + (128 * 128 + 128);
  want += 2 * block(32, 32) + conv(32, 32);
  want += block(32, 64) + block(64, 64) + conv(64, 64);
  want += 2 * block(64, 64);
  want += 2 * block(64, 64) + attention(64);
  want += 3 * block(128, 64) + conv(64, 64);
  want += 2 * block(128, 64) + block(64 + 32, 64) + conv(64, 64);
  want += block(64 + 32, 32) + 2 * block(64, 32);
  want += 2 * 32 + conv(32, 1);
  EXPECT_EQ(network.parameter_count(), want);
}

TEST(DiT, ParameterCountIsTheFormula) {
  DiTConfig c;
  c.classes = 10;
  DiT network(c);
  const int64_t d = 128, block = (d * 6 * d + 6 * d) + (4 * d * d + 4 * d) + (d * 4 * d + 4 * d) + (4 * d * d + d);
  EXPECT_EQ(network.parameter_count(),
            (16 * d + d) + (256 * d + d) + (d * d + d) + 11 * d + 6 * block + (d * 2 * d + 2 * d) + (d * 16 + 16));
}

TEST(DiT, KnowsWhereAPatchLies) {
  DiT network(small_dit());
  network.materialize(1);
  stir(network);
  autograd::NoGrad no_grad;
  const Tensor noise = Tensor::of<float>({1}, {10});
  const auto same = values_of(network.forward(Tensor::full({1, 4, 6, 2}, 0.5), noise, {}));
  EXPECT_GT(std::abs(same[0] - same[2 * 2]), 1e-4);      // the patch to the right
  EXPECT_GT(std::abs(same[0] - same[2 * 6 * 2]), 1e-4);  // the patch below
}

TEST(NoiseEmbedding, IsCosineThenSineWithTheFrequenciesOfTheCode) {
  const auto v = values_of(noise_embedding(Tensor::of<double>({2}, {0, 250}), 8, DType::f64));
  EXPECT_EQ(std::vector<double>(v.begin(), v.begin() + 8), (std::vector<double>{1, 1, 1, 1, 0, 0, 0, 0}));
  for (size_t i = 0; i < 4; ++i) {
    const double angle = 250 * std::exp(-std::log(10000.0) * static_cast<double>(i) / 4);  // log(1e4) / half, not half - 1
    EXPECT_NEAR(v[8 + i], std::cos(angle), 1e-12);
    EXPECT_NEAR(v[12 + i], std::sin(angle), 1e-12);
  }
}

TEST(GridPositions, AreRowThenColumn) {
  const auto v = values_of(grid_positions(2, 3, 8));
  const auto at = [&](size_t token, size_t k) { return v[token * 8 + k]; };
  for (size_t token = 0; token < 6; ++token) {
    const double row = static_cast<double>(token / 3), column = static_cast<double>(token % 3);
    for (size_t k = 0; k < 2; ++k) {
      const double f = std::pow(10000, -static_cast<double>(k) / 2);
      EXPECT_NEAR(at(token, k), std::sin(row * f), 1e-6);
      EXPECT_NEAR(at(token, 2 + k), std::cos(row * f), 1e-6);
      EXPECT_NEAR(at(token, 4 + k), std::sin(column * f), 1e-6);
      EXPECT_NEAR(at(token, 6 + k), std::cos(column * f), 1e-6);
    }
  }
}

TEST(UNet, DropoutDependsOnTheSampleNotOnTheBatch) {
  UNetConfig c = small_unet();
  c.dropout = 0.5;
  UNet network(c);
  network.materialize(1);
  stir(network);
  autograd::NoGrad no_grad;
  const Tensor x = some_images(network, 3, DType::f32), noise = Tensor::of<float>({3}, {1, 30, 900});
  const auto whole = values_of(network.forward(x, noise, {}, {1, 2, 0}));
  const auto second = values_of(network.forward(x.view_slice(0, 1, 2), noise.view_slice(0, 1, 2), {}, {1, 2, 1}));
  for (size_t i = 0; i < second.size(); ++i) EXPECT_EQ(second[i], whole[second.size() + i]);
  EXPECT_NE(values_of(network.forward(x, noise, {}, {1, 3, 0})), whole);
  network.train(false);
  EXPECT_EQ(values_of(network.forward(x, noise, {}, {1, 3, 0})), values_of(network.forward(x, noise, {}, {1, 2, 0})));
}

TEST(Networks, RefuseImpossibleConfigurations) {
  const auto unet = [](auto change, const char* text) {
    UNetConfig c = small_unet();
    change(c);
    EXPECT_THAT([&] { UNet network(c); }, ThrowsMessage<ConfigError>(HasSubstr(text)));
  };
  unet([](auto& c) { c.image.height = 6, c.multipliers = {1, 1, 1}; }, "level 2 of 2 cannot halve images of 3 x 4");
  unet([](auto& c) { c.patch = 3; }, "patches of 3 x 3");
  unet([](auto& c) { c.attention_heights = {3}; }, "attention height 3");
  unet([](auto& c) { c.multipliers = {}; }, "multipliers");
  unet([](auto& c) { c.multipliers = {1, 0}; }, "multipliers must be at least 1, not 0");
  unet([](auto& c) { c.blocks = 0; }, "blocks");
  unet([](auto& c) { c.dropout = 1; }, "dropout");
  unet([](auto& c) { c.width = 5; }, "5");
  unet([](auto& c) { c.classes = -1; }, "classes");
  unet([](auto& c) { c.image.channels = 0; }, "0 channels");
  const auto dit = [](auto change, const char* text) {
    DiTConfig c = small_dit();
    change(c);
    EXPECT_THAT([&] { DiT network(c); }, ThrowsMessage<ConfigError>(HasSubstr(text)));
  };
  dit([](auto& c) { c.width = 10; }, "divisible by 4");
  dit([](auto& c) { c.heads = 3; }, "3 heads");
  dit([](auto& c) { c.patch = 4; }, "patches of 4 x 4");
  dit([](auto& c) { c.layers = 0; }, "layers");
}

class Classifiers : public testing::TestWithParam<bool> {
 protected:
  ClassifierConfig config() const {
    ClassifierConfig c;
    c.image = {6, 5, 2};
    c.classes = 3;
    c.width1 = 3;
    c.width2 = 4;
    c.features = 5;
    c.noise_levels = GetParam();
    return c;
  }
};
INSTANTIATE_TEST_SUITE_P(WithoutAndWithNoise, Classifiers, testing::Bool());

TEST_P(Classifiers, GradientsMatchFiniteDifferences) {
  Classifier classifier(config());
  classifier.materialize(3, DType::f64);
  stir(classifier);
  Tensor x = random_tensor({3, 6, 5, 2}, 1);
  autograd::set_requires_grad(x, true);
  const Tensor noise = GetParam() ? Tensor::of<double>({3}, {0.3, 40, 700}) : Tensor();
  const Tensor targets = labels({0, 2, 1});
  std::vector<std::pair<std::string, Tensor>> leaves{{"x", x}};
  for (nn::Parameter* p : classifier.parameters()) leaves.emplace_back(p->name, p->value);
  const auto output = classifier.forward(x, noise);
  EXPECT_EQ(output.features.shape(), (Shape{3, 5}));
  EXPECT_EQ(output.logits.shape(), (Shape{3, 3}));
  expect_leaf_gradients(leaves, [&] { return ops::cross_entropy(classifier.forward(x, noise).logits, targets).loss; });
}

TEST_P(Classifiers, NameWhatDoesNotFit) {
  Classifier classifier(config());
  classifier.materialize(1);
  const Tensor x = random_tensor({2, 6, 5, 2}, 1, -1, 1, DType::f32), noise = Tensor::of<float>({2}, {1, 2});
  EXPECT_THAT([&] { classifier.forward(x, GetParam() ? Tensor() : noise); }, ThrowsMessage<Error>(HasSubstr("noise levels")));
  EXPECT_THAT([&] { classifier.forward(x.view_slice(2, 0, 4), GetParam() ? noise : Tensor()); },
              ThrowsMessage<Error>(HasSubstr("[2, 6, 4, 2]")));
  ClassifierConfig c = config();
  c.classes = 1;
  EXPECT_THAT([&] { Classifier bad(c); }, ThrowsMessage<ConfigError>(HasSubstr("classes must be at least 2, not 1")));
}

TEST(Classifier, TheDefaultIsTheOneOfTheTables) {
  Classifier classifier({});
  EXPECT_EQ(classifier.parameter_count(), (9 * 32 + 32) + (9 * 32 * 64 + 64) + (3136 * 128 + 128) + (128 * 10 + 10));
}

}  // namespace
}  // namespace rz::models::diffusion
