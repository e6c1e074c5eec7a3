// The Transformer: whole-model gradients in float64, cached generation equals the full forward, configurations, errors.
#include "models/transformer/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "models/transformer/generate.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "runtime/ops/attention.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/matmul.h"
#include "tests/support/gradcheck.h"

namespace rz::models {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TransformerConfig gpt() {
  TransformerConfig c;
  c.layers = 2;
  c.width = 8;
  c.heads = 2;
  c.context = 6;
  c.vocabulary = 7;
  c.mlp_width = 12;
  return c;
}

TransformerConfig llama() {
  TransformerConfig c = gpt();
  c.positions = Positions::rope;
  c.norm = nn::NormKind::rms_norm;
  c.mlp = MlpKind::swiglu;
  c.width = 16;
  c.heads = 4;
  c.kv_heads = 2;
  c.bias = false;
  c.tied_head = false;
  return c;
}

Tensor random_ids(int64_t batch, int64_t time, int64_t vocabulary, uint64_t seed) {
  std::vector<int32_t> ids;
  const Random random(seed, "ids");
  for (int64_t i = 0; i < batch * time; ++i) ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocabulary))));
  return Tensor::of<int32_t>({batch, time}, ids);
}

class Configurations : public testing::TestWithParam<int> {
 protected:
  TransformerConfig config() const { return GetParam() == 0 ? gpt() : llama(); }
};
INSTANTIATE_TEST_SUITE_P(GptAndLlama, Configurations, testing::Values(0, 1));

// Central differences of the loss in float64 for every element of every parameter.
TEST_P(Configurations, WholeModelGradientsMatchFiniteDifferences) {
  Transformer model(config());
  model.materialize(3, DType::f64);
  // Larger weights than at initialization, so that every path carries gradient worth comparing.
  for (nn::Parameter* p : model.parameters()) {
    const Random random(5, p->name);
    for (int64_t i = 0; i < p->numel(); ++i) p->value.data<double>()[i] += 0.3 * random.normal(static_cast<uint64_t>(i));
  }
  const Tensor ids = random_ids(2, 5, model.config().vocabulary, 1);
  const Tensor targets = random_ids(2, 5, model.config().vocabulary, 2);
  const auto loss = [&] { return model.loss(ids, targets, 0.1).loss; };
  autograd::backward(loss());
  autograd::NoGrad no_grad;
  constexpr double kStep = 1e-5;
  for (nn::Parameter* p : model.parameters()) {
    const Tensor gradient = autograd::grad_of(p->value);
    ASSERT_TRUE(gradient.defined()) << p->name;
    double largest = 0;
    for (int64_t i = 0; i < p->numel(); ++i) {
      double& w = p->value.data<double>()[i];
      const double before = w;
      w = before + kStep;
      const double high = loss().item();
      w = before - kStep;
      const double low = loss().item();
      w = before;
      const double numeric = (high - low) / (2 * kStep);
      const double analytic = gradient.data<double>()[i];
      ASSERT_NEAR(analytic, numeric, 1e-7 * std::max(1.0, std::abs(numeric))) << p->name << " element " << i;
      largest = std::max(largest, std::abs(analytic));
    }
    EXPECT_GT(largest, 1e-6) << p->name << " got no gradient worth the name";
  }
}

// Layers and free functions compute the same bits.
TEST_P(Configurations, LayersEqualFreeFunctions) {
  nn::Linear linear(6, 4, true, nn::Init::normal(1));
  linear.materialize(1);
  const Tensor x = test::random_tensor({3, 6}, 4, -1, 1, DType::f32);
  EXPECT_EQ(linear.forward(x).to_vector<float>(), ops::linear(x, linear.parameter("weight").value, linear.parameter("bias").value).to_vector<float>());
  nn::Norm norm(nn::NormKind::layer_norm, 6, true, 1e-5);
  norm.materialize(1);
  EXPECT_EQ(norm.forward(x).to_vector<float>(), ops::layer_norm(x, norm.parameter("weight").value, norm.parameter("bias").value).to_vector<float>());
}

TEST_P(Configurations, CachedGenerationEqualsTheFullForward) {
  Transformer model(config());
  model.materialize(11);
  for (nn::Parameter* p : model.parameters())
    for (int64_t i = 0; i < p->numel(); ++i) p->value.data<float>()[i] *= 5;
  model.train(false);
  autograd::NoGrad no_grad;
  const int64_t time = model.config().context;
  const int64_t vocabulary = model.config().vocabulary;
  const Tensor ids = random_ids(2, time, vocabulary, 3);
  const auto full = model.forward(ids).to_vector<float>();
  // In pieces of 1, 2 and the rest.
  auto caches = model.make_caches(2);
  int64_t at = 0;
  for (const int64_t piece : {int64_t{1}, int64_t{2}, time - 3}) {
    std::vector<int32_t> part;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = at; t < at + piece; ++t) part.push_back(ids.data<int32_t>()[b * time + t]);
    const auto logits = model.forward_cached(Tensor::of<int32_t>({2, piece}, part), caches).to_vector<float>();
    at += piece;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t v = 0; v < vocabulary; ++v)
        EXPECT_NEAR(logits[static_cast<size_t>(b * vocabulary + v)], full[static_cast<size_t>((b * time + at - 1) * vocabulary + v)], 2e-4)
            << "batch " << b << " after " << at;
  }
}

TEST_P(Configurations, CachedGenerationWorksInSixteenBits) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Transformer model(config());
    model.materialize(11, dtype);
    model.train(false);
    autograd::NoGrad no_grad;
    const int64_t time = model.config().context;
    const auto vocabulary = static_cast<size_t>(model.config().vocabulary);
    const Tensor ids = random_ids(1, time, model.config().vocabulary, 3);
    const Tensor full = model.forward(ids);
    EXPECT_EQ(full.dtype(), dtype);
    auto caches = model.make_caches(1);
    const auto logits = model.forward_cached(ids, caches).to_vector<float>();
    const auto all = full.to_vector<float>();
    for (size_t v = 0; v < vocabulary; ++v) EXPECT_NEAR(logits[v], all[all.size() - vocabulary + v], 0.01) << name(dtype);
  }
}

TEST_P(Configurations, TheModelIsCausal) {
  Transformer model(config());
  model.materialize(11);
  autograd::NoGrad no_grad;
  const int64_t time = model.config().context;
  const int64_t vocabulary = model.config().vocabulary;
  Tensor ids = random_ids(1, time, vocabulary, 3);
  const auto before = model.forward(ids).to_vector<float>();
  ids.data<int32_t>()[time - 1] = (ids.data<int32_t>()[time - 1] + 1) % static_cast<int32_t>(vocabulary);
  const auto after = model.forward(ids).to_vector<float>();
  const auto last = static_cast<size_t>((time - 1) * vocabulary);
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(last), after.begin()));
  EXPECT_FALSE(std::equal(before.begin() + static_cast<std::ptrdiff_t>(last), before.end(), after.begin() + static_cast<std::ptrdiff_t>(last)));
}

TEST_P(Configurations, GenerationGoesBeyondTheContext) {
  Transformer model(config());
  model.materialize(11);
  std::vector<int32_t> seen;
  const auto tokens = generate(model, {1, 2, 3}, 20, {1.0, 0, 1.0, 7}, [&](int32_t t) { seen.push_back(t); });
  EXPECT_EQ(tokens.size(), 20u);
  EXPECT_EQ(tokens, seen);
  EXPECT_EQ(tokens, generate(model, {1, 2, 3}, 20, {1.0, 0, 1.0, 7}));
  EXPECT_NE(tokens, generate(model, {1, 2, 3}, 20, {1.0, 0, 1.0, 8}));
}

TEST(Transformer, ParameterCountIsTheFormula) {
  // V h + L (12 h^2 + 13 h) + 2 h + T h for a GPT-2 with a tied head.
  TransformerConfig c;
  c.layers = 12;
  c.width = 768;
  c.heads = 12;
  c.context = 1024;
  c.vocabulary = 50257;
  Transformer model(c);  // costs no memory: nothing is materialized
  EXPECT_EQ(model.parameter_count(), 50257 * 768 + 12 * (12 * 768 * 768 + 13 * 768) + 2 * 768 + 1024 * 768);
}

TEST(Transformer, NamesAndDecay) {
  Transformer model(gpt());
  std::set<std::string> decayed;
  for (const nn::Parameter* p : model.parameters())
    if (p->decay) decayed.insert(p->name);
  EXPECT_THAT(decayed, testing::ElementsAre("blocks.0.attn.out.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.down.weight", "blocks.0.mlp.up.weight",
                                            "blocks.1.attn.out.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.down.weight", "blocks.1.mlp.up.weight"));
  EXPECT_THAT([&] { model.parameter("blocks.9.w"); }, ThrowsMessage<Error>(HasSubstr("blocks.1.mlp.up.weight")));
}

TEST(Transformer, InitializationIsGpt2s) {
  TransformerConfig c = gpt();
  c.width = 64;
  c.mlp_width = 256;
  Transformer model(c);
  model.materialize(1);
  const auto std_of = [&](const std::string& name) {
    double squares = 0;
    const auto values = model.parameter(name).value.to_vector<double>();
    for (double v : values) squares += v * v;
    return std::sqrt(squares / static_cast<double>(values.size()));
  };
  EXPECT_NEAR(std_of("blocks.0.mlp.up.weight"), 0.02, 0.0006);
  EXPECT_NEAR(std_of("blocks.0.mlp.down.weight"), 0.02 / 2, 0.0003);  // 0.02 / sqrt(2 * 2 layers)
  EXPECT_EQ(std_of("blocks.1.mlp.up.bias"), 0);
  EXPECT_EQ(std_of("norm.weight"), 1);
}

TEST(Transformer, RefusesImpossibleShapes) {
  const auto expect_error = [](auto change, const char* text) {
    TransformerConfig c = gpt();
    change(c);
    EXPECT_THAT([&] { Transformer model(c); }, ThrowsMessage<ConfigError>(HasSubstr(text)));
  };
  expect_error([](auto& c) { c.heads = 3; }, "width 8 is not divisible by 3 heads");
  expect_error([](auto& c) { c.heads = 4; c.kv_heads = 3; }, "kv_heads 3");
  expect_error([](auto& c) { c.layers = 0; }, "layers");
  expect_error([](auto& c) { c.dropout = 1; }, "dropout");
  expect_error([](auto& c) { c.heads = 8; c.positions = Positions::rope; }, "even head width");
  Transformer model(gpt());
  model.materialize(1);
  EXPECT_THAT([&] { model.forward(random_ids(1, 7, 7, 1)); }, ThrowsMessage<Error>(HasSubstr("context of 6")));
}

TEST(Transformer, DropoutDependsOnTheSampleNotOnTheBatch) {
  TransformerConfig c = gpt();
  c.dropout = 0.5;
  Transformer model(c);
  model.materialize(1);
  autograd::NoGrad no_grad;
  const Tensor ids = random_ids(3, 4, 7, 1);
  const auto whole = model.forward(ids, {1, 2, 0}).to_vector<float>();
  const auto second = model.forward(ids.view_slice(0, 1, 2), {1, 2, 1}).to_vector<float>();
  const size_t row = second.size();
  for (size_t i = 0; i < row; ++i) EXPECT_NEAR(second[i], whole[row + i], 1e-6);
  EXPECT_NE(model.forward(ids, {1, 3, 0}).to_vector<float>(), whole);
  model.train(false);
  EXPECT_EQ(model.forward(ids, {1, 3, 0}).to_vector<float>(), model.forward(ids, {1, 2, 0}).to_vector<float>());
}

TEST(ChooseToken, FollowsItsSettings) {
  const std::vector<float> logits = {0, 3, 1, 2};
  EXPECT_EQ(choose_token(logits, {0, 0, 1, 1}, 0), 1);
  std::set<int32_t> top2, nucleus;
  std::vector<int> counts(4);
  for (uint64_t i = 0; i < 4000; ++i) {
    top2.insert(choose_token(logits, {1, 2, 1, 1}, i));
    nucleus.insert(choose_token(logits, {1, 0, 0.7, 1}, i));  // probabilities .032 .644 .087 .237
    ++counts[static_cast<size_t>(choose_token(logits, {1, 0, 1, 1}, i))];
  }
  EXPECT_THAT(top2, testing::ElementsAre(1, 3));
  EXPECT_THAT(nucleus, testing::ElementsAre(1, 3));
  EXPECT_NEAR(counts[1] / 4000.0, 0.6439, 0.03);
  EXPECT_NEAR(counts[0] / 4000.0, 0.0321, 0.012);
  EXPECT_THROW(choose_token(logits, {-1, 0, 1, 1}, 0), ConfigError);
  EXPECT_THROW(choose_token(logits, {1, 0, 0, 1}, 0), ConfigError);
}

}  // namespace
}  // namespace rz::models
