// Attention against softmax(scale Q K^T + mask) V written out in double precision, forward and backward.
#include "runtime/ops/attention.h"

#include "runtime/core/memory.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/softmax.h"
#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;

struct Case {
  int64_t batch, heads, kv_heads, queries, keys, width;
  bool causal;
  std::string str() const {
    return fmt::format("B {} H {} Hkv {} T {} S {} D {} causal {}", batch, heads, kv_heads, queries, keys, width, causal);
  }
};

struct Naive {
  Values out, dq, dk, dv;
};

// Everything contiguous: q [B, H, T, D], k and v [B, Hkv, S, D], g like q.
Naive naive(const Case& c, const Values& q, const Values& k, const Values& v, const Values& g, double scale, int64_t mask_shift = 0) {
  Naive r{Values(q.size(), 0), Values(q.size(), 0), Values(k.size(), 0), Values(v.size(), 0)};
  const auto at = [&](int64_t row, int64_t d) { return static_cast<size_t>(row * c.width + d); };
  for (int64_t bh = 0; bh < c.batch * c.heads; ++bh) {
    const int64_t kv = bh / c.heads * c.kv_heads + bh % c.heads / (c.heads / c.kv_heads);
    for (int64_t t = 0; t < c.queries; ++t) {
      const int64_t visible = c.causal ? std::clamp<int64_t>(t + 1 + c.keys - c.queries + mask_shift, 0, c.keys) : c.keys;
      const int64_t qrow = bh * c.queries + t;
      Values p(static_cast<size_t>(visible));
      double max = -INFINITY;
      for (int64_t s = 0; s < visible; ++s) {
        double dot = 0;
        for (int64_t d = 0; d < c.width; ++d) dot += q[at(qrow, d)] * k[at(kv * c.keys + s, d)];
        p[static_cast<size_t>(s)] = dot * scale;
        max = std::max(max, dot * scale);
      }
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - max);
      double delta = 0;
      Values dp(p.size(), 0);
      for (int64_t s = 0; s < visible; ++s) {
        double& weight = p[static_cast<size_t>(s)];
        weight /= sum;
        for (int64_t d = 0; d < c.width; ++d) {
          r.out[at(qrow, d)] += weight * v[at(kv * c.keys + s, d)];
          r.dv[at(kv * c.keys + s, d)] += weight * g[at(qrow, d)];
          dp[static_cast<size_t>(s)] += g[at(qrow, d)] * v[at(kv * c.keys + s, d)];
        }
        delta += weight * dp[static_cast<size_t>(s)];
      }
      for (int64_t s = 0; s < visible; ++s) {
        const double ds = p[static_cast<size_t>(s)] * (dp[static_cast<size_t>(s)] - delta) * scale;
        for (int64_t d = 0; d < c.width; ++d) {
          r.dq[at(qrow, d)] += ds * k[at(kv * c.keys + s, d)];
          r.dk[at(kv * c.keys + s, d)] += ds * q[at(qrow, d)];
        }
      }
    }
  }
  return r;
}

struct Inputs {
  Tensor q, k, v, g;
  Inputs(const Case& c, DType dtype)
      : q(random_tensor({c.batch, c.heads, c.queries, c.width}, 1, -2, 2, dtype)),
        k(random_tensor({c.batch, c.kv_heads, c.keys, c.width}, 2, -2, 2, dtype)),
        v(random_tensor({c.batch, c.kv_heads, c.keys, c.width}, 3, -2, 2, dtype)),
        g(random_tensor({c.batch, c.heads, c.queries, c.width}, 4, -2, 2, dtype)) {}
};

void expect_matches_naive(const Case& c, DType dtype, double tolerance) {
  Inputs in(c, dtype);
  const double scale = 1 / std::sqrt(static_cast<double>(c.width));
  const Naive want = naive(c, values_of(in.q), values_of(in.k), values_of(in.v), values_of(in.g), scale);
  for (Tensor* t : {&in.q, &in.k, &in.v}) autograd::set_requires_grad(*t, true);
  const Tensor out = ops::scaled_dot_product_attention(in.q, in.k, in.v, {.causal = c.causal});
  EXPECT_EQ(out.shape(), in.q.shape());
  EXPECT_TRUE(out.view_permute({0, 2, 1, 3}).is_contiguous());
  EXPECT_LT(largest_error(out, want.out), tolerance) << c.str() << " " << name(dtype);
  autograd::backward(out, {.grad = in.g});
  EXPECT_LT(largest_error(autograd::grad_of(in.q), want.dq), tolerance) << "dq " << c.str() << " " << name(dtype);
  EXPECT_LT(largest_error(autograd::grad_of(in.k), want.dk), tolerance) << "dk " << c.str() << " " << name(dtype);
  EXPECT_LT(largest_error(autograd::grad_of(in.v), want.dv), tolerance) << "dv " << c.str() << " " << name(dtype);
}

TEST(Attention, MatchesTheNaiveFormAtEveryLength) {
  // Around the edges of vectors, panels and tiles, and between.
  for (const int64_t length : {1, 2, 5, 6, 7, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 97, 127, 128, 129, 130}) {
    for (const bool causal : {false, true}) {
      expect_matches_naive({1, 2, 2, length, length, 8, causal}, DType::f64, 1e-11);
      expect_matches_naive({1, 1, 1, length, length, 17, causal}, DType::f32, 2e-5);
    }
  }
}

TEST(Attention, MatchesTheNaiveFormWithUnequalLengths) {
  for (const auto& [queries, keys] : {std::pair<int64_t, int64_t>{1, 130}, {3, 129}, {50, 51}, {7, 260}, {49, 200}, {130, 1}, {100, 37}}) {
    for (const bool causal : {false, true}) {
      expect_matches_naive({2, 2, 1, queries, keys, 5, causal}, DType::f64, 1e-11);
      expect_matches_naive({1, 1, 1, queries, keys, 32, causal}, DType::f32, 5e-5);
    }
  }
}

TEST(Attention, MatchesTheNaiveFormAtEveryWidthAndGrouping) {
  for (const int64_t width : {1, 3, 8, 15, 16, 33, 64, 80, 128, 130})
    expect_matches_naive({1, 2, 1, 53, 53, width, true}, DType::f32, 5e-5);
  for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{1, 1}, {4, 1}, {4, 2}, {6, 3}, {6, 6}})
    expect_matches_naive({2, heads, kv_heads, 61, 61, 16, true}, DType::f64, 1e-11);
  for (const DType dtype : {DType::bf16, DType::f16})
    expect_matches_naive({2, 2, 1, 33, 70, 24, true}, dtype, dtype == DType::bf16 ? 0.1 : 0.02);
}

TEST(Attention, TheComparisonSeesAShiftedMask) {
  const Case c{1, 1, 1, 20, 33, 8, true};
  const Inputs in(c, DType::f64);
  const Tensor out = ops::scaled_dot_product_attention(in.q, in.k, in.v, {.causal = true, .scale = 0.7});
  const auto against = [&](double scale, int64_t shift) {
    return largest_error(out, naive(c, values_of(in.q), values_of(in.k), values_of(in.v), values_of(in.g), scale, shift).out);
  };
  EXPECT_LT(against(0.7, 0), 1e-12);
  EXPECT_GT(against(0.7, 1), 1e-3);
  EXPECT_GT(against(0.7, -1), 1e-3);
  EXPECT_GT(against(0.71, 0), 1e-3);
}

TEST(Attention, Gradients) {
  for (const bool causal : {false, true}) {
    const auto f = [&](const auto& in) { return ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = causal, .scale = 0.8}); };
    expect_gradients_match(f, {random_tensor({1, 4, 5, 3}, 1), random_tensor({1, 2, 7, 3}, 2), random_tensor({1, 2, 7, 3}, 3)},
                           {.name = "attention"});
    // One tensor in all three places.
    expect_gradients_match([&](const auto& in) { return ops::scaled_dot_product_attention(in[0], in[0], in[0], {.causal = causal}); },
                           {random_tensor({1, 2, 6, 3}, 1)}, {.name = "self-attention"});
    const auto table = ops::make_rope_table(16, 4, 100, DType::f64);
    for (const ops::RopeTable* rope : {static_cast<const ops::RopeTable*>(nullptr), &table})
      expect_gradients_match(
          [&](const auto& in) {
            return ops::attention_qkv(in[0], {.heads = 4, .kv_heads = 2, .causal = causal, .rope = rope, .rope_offset = 3});
          },
          {random_tensor({2, 5, 32}, 1)}, {.name = "attention_qkv"});
  }
}

TEST(Attention, FusedProjectionEqualsItsParts) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const auto table = ops::make_rope_table(100, 16, 10000, dtype);
    Tensor qkv = leaf(random_tensor({2, 77, (6 + 2 * 2) * 16}, 1, -2, 2, dtype));
    const Tensor fused = ops::attention_qkv(qkv, {.heads = 6, .kv_heads = 2, .rope = &table, .rope_offset = 9});
    const Tensor heads = qkv.view_alias().view_reshape({2, 77, 10, 16});
    const auto by_head = [](const Tensor& t) { return t.view_permute({0, 2, 1, 3}); };
    Tensor q = leaf(ops::rope(heads.view_slice(2, 0, 6), table, 9));
    Tensor k = leaf(ops::rope(heads.view_slice(2, 6, 8), table, 9));
    Tensor v = leaf(contiguous_copy(heads.view_slice(2, 8, 10)));
    const Tensor parts = ops::scaled_dot_product_attention(by_head(q), by_head(k), by_head(v), {.causal = true});
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;
    EXPECT_LT(largest_error(fused, values_of(parts.view_permute({0, 2, 1, 3}))), tolerance);

    // The same for the cached form: the last 5 tokens against all keys.
    const Tensor last = ops::scaled_dot_product_attention(by_head(q.view_slice(1, 72, 77)), by_head(k), by_head(v), {.causal = true});
    EXPECT_LT(largest_error(last, values_of(parts.view_slice(2, 72, 77))), tolerance);
  }
}

TEST(Attention, LargeScoresAreStable) {
  for (const float size : {1e4f, 1e18f}) {
    Tensor q = leaf(Tensor::full({1, 1, 70, 8}, size));
    Tensor k = leaf(random_tensor({1, 1, 150, 8}, 2, -1, 1, DType::f32));
    Tensor v = leaf(random_tensor({1, 1, 150, 8}, 3, -1, 1, DType::f32));
    const Tensor out = ops::scaled_dot_product_attention(q, k, v);
    autograd::backward(out, {.grad = Tensor::full(out.shape(), 1)});
    for (const Tensor& t : {out, autograd::grad_of(q), autograd::grad_of(k), autograd::grad_of(v)})
      for (const double x : values_of(t)) ASSERT_TRUE(std::isfinite(x)) << size;
    // All weight is on the key with the largest sum.
    const Values keys = values_of(k);
    size_t best = 0;
    double most = -INFINITY;
    for (size_t s = 0; s < 150; ++s) {
      double sum = 0;
      for (size_t d = 0; d < 8; ++d) sum += keys[s * 8 + d];
      if (sum > most) most = sum, best = s;
    }
    EXPECT_NEAR(values_of(out)[0], values_of(v)[best * 8], 1e-5);
  }
}

TEST(Attention, QueriesThatSeeNothingGiveZero) {
  const Case c{1, 1, 1, 60, 10, 4, true};
  Inputs in(c, DType::f32);
  for (Tensor* t : {&in.q, &in.k, &in.v}) autograd::set_requires_grad(*t, true);
  const Tensor out = ops::scaled_dot_product_attention(in.q, in.k, in.v, {.causal = true});
  autograd::backward(out, {.grad = in.g});
  const Values y = values_of(out);
  const Values dq = values_of(autograd::grad_of(in.q));
  for (size_t i = 0; i < 50 * 4; ++i) EXPECT_TRUE(y[i] == 0 && dq[i] == 0);
  EXPECT_NE(y[50 * 4], 0);
}

TEST(Attention, ScoresOfNothingButMinusInfinityHaveNoGradient) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Tensor q = Tensor::full({1, 1, 1, 2}, 1), v = Tensor::full({1, 1, 2, 2}, 1);
  const Tensor k = Tensor::full({1, 1, 2, 2}, kLowest);
  autograd::set_requires_grad(v, true);
  const Tensor y = ops::scaled_dot_product_attention(q, k, v);
  EXPECT_EQ(y.to_vector<float>(), std::vector<float>(2, 0));
  autograd::backward(ops::sum(y));
  EXPECT_EQ(autograd::grad_of(v).to_vector<float>(), std::vector<float>(4, 0));
}

TEST(Attention, MemoryIsLinearInTheSequence) {
  auto& memory = RankContext::current()->memory();
  const auto peak_of = [&](int64_t tokens, bool tiled) {
    Tensor qkv[3];
    for (uint64_t i = 0; i < 3; ++i) qkv[i] = leaf(random_tensor({1, 2, tokens, 16}, i, -1, 1, DType::f32));
    const int64_t before = memory.current_bytes();
    memory.reset_peaks();
    const Tensor out = tiled ? ops::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
                             : ops::matmul(ops::softmax(ops::matmul(qkv[0], qkv[1], {.b = true})), qkv[2]);
    autograd::backward(out, {.grad = random_tensor(out.shape(), 9, -1, 1, DType::f32)});
    return static_cast<double>(memory.peak().total - before);
  };
  for (const int64_t tokens : {512, 1024}) {
    EXPECT_LT(peak_of(2 * tokens, true) / peak_of(tokens, true), 2.05) << tokens;
    // The control: the measurement tells linear from quadratic.
    EXPECT_GT(peak_of(2 * tokens, false) / peak_of(tokens, false), 3.5) << tokens;
  }
}

TEST(Attention, SameBitsForAnyThreads) {
  const Tensor qkv = random_tensor({3, 150, (4 + 2 * 2) * 24}, 1, -2, 2, DType::f32);
  const auto table = ops::make_rope_table(150, 24);
  expect_same_bits_for_any_threads([&] {
    Tensor in = leaf(contiguous_copy(qkv));
    const Tensor out = ops::attention_qkv(in, {.heads = 4, .kv_heads = 2, .rope = &table});
    autograd::backward(out, {.grad = random_tensor(out.shape(), 2, -1, 1, DType::f32)});
    Tensor q = random_tensor({1, 1, 333, 8}, 5, -1, 1, DType::f32);
    return std::vector<Tensor>{out, autograd::grad_of(in), ops::scaled_dot_product_attention(q, q, q, {.causal = true})};
  });
}

TEST(Attention, EmptyShapes) {
  EXPECT_EQ(
      ops::scaled_dot_product_attention(Tensor::zeros({0, 2, 3, 4}), Tensor::zeros({0, 2, 3, 4}), Tensor::zeros({0, 2, 3, 4})).shape(),
      (Shape{0, 2, 3, 4}));
  const Tensor out =
      ops::scaled_dot_product_attention(Tensor::full({1, 1, 2, 4}, 1), Tensor::zeros({1, 1, 0, 4}), Tensor::zeros({1, 1, 0, 4}));
  EXPECT_EQ(values_of(out), Values(8, 0));
  EXPECT_EQ(ops::attention_qkv(Tensor::zeros({2, 0, 12}), {.heads = 2}).shape(), (Shape{2, 0, 4}));
}

TEST(Attention, Errors) {
  const auto attend = [](Shape q, Shape k, Shape v) {
    ops::scaled_dot_product_attention(Tensor::zeros(q), Tensor::zeros(k), Tensor::zeros(v));
  };
  expect_error_names([&] { attend({1, 3, 2, 4}, {1, 2, 2, 4}, {1, 2, 2, 4}); }, {"3 query heads", "[1, 3, 2, 4]", "[1, 2, 2, 4]"});
  expect_error_names([&] { attend({1, 2, 2, 4}, {1, 2, 2, 5}, {1, 2, 2, 5}); }, {"[1, 2, 2, 4]", "[1, 2, 2, 5]"});
  expect_error_names([&] { attend({1, 2, 2, 4}, {1, 2, 3, 4}, {1, 2, 2, 4}); }, {"[1, 2, 3, 4]", "[1, 2, 2, 4]"});
  expect_error_names([&] { attend({2, 2, 4}, {1, 2, 3, 4}, {1, 2, 2, 4}); }, {"[2, 2, 4]"});
  expect_error_names([] { ops::attention_qkv(Tensor::zeros({1, 2, 13}), {.heads = 2}); }, {"[1, 2, 13]", "H = 2"});
  const auto table = ops::make_rope_table(4, 2);
  expect_error_names([&] { ops::attention_qkv(Tensor::zeros({1, 5, 12}), {.heads = 2, .rope = &table}); }, {"positions [0, 5)", "[4, 2]"});
}

}  // namespace
}  // namespace rz
