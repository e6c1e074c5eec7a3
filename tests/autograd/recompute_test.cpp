// Recomputation: the same gradients as without, parameters complete once, inputs that need none left alone.
#include "runtime/autograd/recompute.h"

#include <gtest/gtest.h>

#include <map>

#include "runtime/autograd/engine.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "tests/support/gradcheck.h"

namespace rz::autograd {
namespace {

Tensor leaf(Shape shape, uint64_t seed) {
  Tensor t = test::random_tensor(shape, seed, -1, 1, DType::f32);
  set_requires_grad(t, true);
  return t;
}

struct Counter final : GradientSink {
  GradientTarget target(AutogradMeta& m) override {
    const bool first = !m.grad.defined();
    if (first) m.grad = Tensor::empty(m.shape, m.dtype, Category::gradient, "grad");
    return {m.grad, !first};
  }
  void ready(AutogradMeta& m) override { ++times[&m]; }
  std::map<AutogradMeta*, int> times;
};

// w is used twice inside and once outside; x feeds a residual connection.
Tensor network(const Tensor& x, const Tensor& w, const Tensor& v, bool recomputed) {
  const auto body = [w, v](const std::vector<Tensor>& in) {
    const Tensor h = ops::tanh(ops::matmul(in[0], w));
    return ops::add(in[0], ops::mul(ops::matmul(h, w), v));
  };
  const Tensor y = recomputed ? recompute(body, {x}, {w, v}) : body({x});
  return ops::sum(ops::square(ops::matmul(y, w)));
}

TEST(Recompute, GivesTheSameBits) {
  Tensor x = leaf({5, 4}, 1), w = leaf({4, 4}, 2), v = leaf({4}, 3);
  std::vector<std::vector<float>> gradients[2];
  for (const bool recomputed : {false, true}) {
    for (Tensor* t : {&x, &w, &v}) clear_grad(*t);
    Counter sink;
    BackwardOptions options;
    options.sink = &sink;
    backward(network(x, w, v, recomputed), options);
    for (Tensor* t : {&x, &w, &v}) {
      gradients[recomputed].push_back(grad_of(*t).to_vector<float>());
      EXPECT_EQ(sink.times[find_meta(*t)], 1);
    }
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

// A skip connection: what is used after the stretch contributes before it, and three numbers do not add up the same in any order.
TEST(Recompute, GivesTheSameBitsWhereAnInputIsUsedOutside) {
  std::vector<float> gradients[2];
  for (const bool recomputed : {false, true}) {
    Tensor x = leaf({7, 5}, 1), w = leaf({5, 5}, 2);
    const auto body = [w](const std::vector<Tensor>& in) { return ops::add(ops::tanh(ops::matmul(in[0], w)), ops::mul(in[0], in[1])); };
    const Tensor h = ops::sin(x), s = ops::cos(x);
    const Tensor y = recomputed ? recompute(body, {h, s}, {w}) : body({h, s});
    backward(ops::sum(ops::mul(ops::exp(y), ops::add(ops::square(h), s))));
    gradients[recomputed] = grad_of(x).to_vector<float>();
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST(Recompute, TakesAnInputTwiceAndOneThatNothingReads) {
  std::vector<float> gradients[2];
  for (const bool recomputed : {false, true}) {
    Tensor x = leaf({4, 3}, 1), unread = leaf({2}, 2);
    const auto body = [](const std::vector<Tensor>& in) { return ops::mul(ops::tanh(in[0]), ops::exp(in[1])); };
    const Tensor h = ops::sin(x), u = ops::square(unread);
    const Tensor y = recomputed ? recompute(body, {h, h, u}, {}) : body({h, h, u});
    backward(ops::sum(ops::mul(y, h)));
    gradients[recomputed] = grad_of(x).to_vector<float>();
    if (recomputed) {
      EXPECT_EQ(grad_of(unread).to_vector<float>(), std::vector<float>(2, 0.0f));
    }
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST(Recompute, Nests) {
  Tensor x = leaf({3, 4}, 1), w = leaf({4, 4}, 2);
  const auto inner = [w](const std::vector<Tensor>& in) { return ops::tanh(ops::matmul(in[0], w)); };
  const auto outer = [&](const std::vector<Tensor>& in) {
    return ops::add(recompute(inner, {in[0]}, {w}), recompute(inner, {recompute(inner, {in[0]}, {w})}, {w}));
  };
  backward(ops::sum(recompute(outer, {x}, {w})));
  const auto dx = grad_of(x).to_vector<float>(), dw = grad_of(w).to_vector<float>();
  clear_grad(x);
  clear_grad(w);
  const Tensor a = inner({x});
  backward(ops::sum(ops::add(a, inner({inner({x})}))));
  EXPECT_EQ(grad_of(x).to_vector<float>(), dx);
  const auto expected = grad_of(w).to_vector<float>();
  for (size_t i = 0; i < dw.size(); ++i) EXPECT_NEAR(dw[i], expected[i], 1e-5);
}

TEST(Recompute, InputsWithoutGradientAreLeftAlone) {
  const Tensor x = test::random_tensor({3, 4}, 1, -1, 1, DType::f32);
  Tensor w = leaf({4, 4}, 2);
  backward(ops::sum(recompute([w](const std::vector<Tensor>& in) { return ops::matmul(in[0], w); }, {x}, {w})));
  EXPECT_TRUE(grad_of(w).defined());
  EXPECT_FALSE(grad_of(x).defined());
}

}  // namespace
}  // namespace rz::autograd
