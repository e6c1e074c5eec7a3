// What the table of op cases does not show of the elementwise, matmul and reduction operations: kinks, ties, types, errors.
#include "runtime/ops/elementwise.h"

#include <gtest/gtest.h>

#include "runtime/autograd/engine.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using test::values_of;

Tensor leaf_of(const std::vector<float>& values) {
  Tensor t = Tensor::of<float>({static_cast<int64_t>(values.size())}, values);
  autograd::set_requires_grad(t, true);
  return t;
}

std::vector<double> gradient(Tensor x, const std::function<Tensor(const Tensor&)>& f) {
  autograd::clear_grad(x);
  autograd::backward(ops::sum(f(x)));
  return values_of(autograd::grad_of(x));
}

TEST(ElementwiseOps, GradientsAtKinks) {
  const Tensor x = leaf_of({-1, 0, 1});
  EXPECT_EQ(gradient(x, ops::relu), (std::vector<double>{0, 0, 1}));
  EXPECT_EQ(gradient(x, ops::abs), (std::vector<double>{-1, 0, 1}));
  EXPECT_EQ(gradient(x, [](const Tensor& t) { return ops::clamp(t, -0.5, 0.5); }), (std::vector<double>{0, 1, 0}));
  EXPECT_EQ(gradient(x, [](const Tensor& t) { return ops::maximum(t, Tensor::zeros({3})); }), (std::vector<double>{0, 0.5, 1}));
  EXPECT_EQ(gradient(x, [](const Tensor& t) { return ops::minimum(t, Tensor::zeros({3})); }), (std::vector<double>{1, 0.5, 0}));
  EXPECT_EQ(gradient(x, ops::floor), (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(gradient(x, [](const Tensor& t) { return ops::power(t, 0); }), (std::vector<double>{0, 0, 0}));
}

TEST(ElementwiseOps, ExtremaShareTheirGradientAmongTies) {
  EXPECT_EQ(gradient(leaf_of({1, 3, 3, 0}), [](const Tensor& t) { return ops::max(t); }), (std::vector<double>{0, 0.5, 0.5, 0}));
  EXPECT_EQ(gradient(leaf_of({1, 0, 3, 0}), [](const Tensor& t) { return ops::min(t); }), (std::vector<double>{0, 0.5, 0, 0.5}));
}

TEST(ElementwiseOps, NothingOverflowsWhereTheResultIsFinite) {
  const Tensor x = Tensor::of<float>({4}, {-1000, -100, 100, 1000});
  EXPECT_EQ(values_of(ops::softplus(x))[3], 1000);
  EXPECT_EQ(values_of(ops::softplus(x))[0], 0);
  EXPECT_EQ(values_of(ops::log_sigmoid(x))[0], -1000);
  EXPECT_EQ(values_of(ops::silu(x))[0], 0);
  EXPECT_EQ(values_of(ops::gelu(x)), (std::vector<double>{0, 0, 100, 1000}));
  EXPECT_EQ(gradient(leaf_of({-1000, 1000}), ops::gelu), (std::vector<double>{0, 1}));
  EXPECT_EQ(gradient(leaf_of({-1000, 1000}), ops::silu), (std::vector<double>{0, 1}));
}

TEST(ElementwiseOps, ComparisonsHaveNoGradient) {
  const Tensor x = leaf_of({1, 2});
  const Tensor mask = ops::gt(x, Tensor::scalar(1.5));
  EXPECT_EQ(values_of(mask), (std::vector<double>{0, 1}));
  EXPECT_FALSE(autograd::requires_grad(mask));
  EXPECT_EQ(gradient(x, [&](const Tensor& t) { return ops::masked_fill(t, mask, 9); }), (std::vector<double>{1, 0}));
}

TEST(ElementwiseOps, Errors) {
  const Tensor x = Tensor::full({2}, 1), wide = Tensor::full({2}, 1, DType::f64), whole = Tensor::full({2}, 1, DType::i64);
  EXPECT_THROW(ops::add(x, wide), Error);
  EXPECT_THROW(ops::add(whole, whole), Error);
  EXPECT_THROW(ops::exp(whole), Error);
  EXPECT_THROW(ops::add(x, Tensor::full({3}, 1)), Error);
  EXPECT_THROW(ops::where(x, x, x), Error);
}

TEST(LinearOps, ErrorsNameTheShapes) {
  const Tensor x = Tensor::full({2, 3}, 1), weight = Tensor::full({4, 5}, 1);
  try {
    ops::linear(x, weight);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("f32[2, 3] does not fit a weight of f32[4, 5]"), std::string::npos) << e.what();
  }
  EXPECT_THROW(ops::linear(x, Tensor::full({4, 3}, 1), Tensor::full({3}, 1)), Error);
  EXPECT_THROW(ops::matmul(Tensor::full({3}, 1), x), Error);
}

TEST(LinearOps, EmptyBatchesGiveZeroGradients) {
  Tensor weight = Tensor::full({4, 3}, 1), bias = Tensor::full({4}, 1);
  autograd::set_requires_grad(weight, true);
  autograd::set_requires_grad(bias, true);
  autograd::backward(ops::sum(ops::linear(Tensor::empty({0, 3}), weight, bias)));
  EXPECT_EQ(values_of(autograd::grad_of(weight)), std::vector<double>(12, 0));
  EXPECT_EQ(values_of(autograd::grad_of(bias)), std::vector<double>(4, 0));
}

TEST(ReductionOps, TopKAndArgMax) {
  const Tensor x = Tensor::of<float>({2, 3}, {1, 3, 2, 6, 5, 4});
  const auto [values, indices] = ops::topk(x, 2);
  EXPECT_EQ(values_of(values), (std::vector<double>{3, 2, 6, 5}));
  EXPECT_EQ(values_of(indices), (std::vector<double>{1, 2, 0, 1}));
  EXPECT_EQ(values_of(ops::argmax(x, 1)), (std::vector<double>{1, 0}));
  EXPECT_EQ(ops::argmax(x, 0, true).shape(), (Shape{1, 3}));
  EXPECT_THROW(ops::var(Tensor::full({1}, 1)), Error);
  EXPECT_THROW(ops::mean(Tensor::empty({0})), Error);
}

}  // namespace
}  // namespace rz
