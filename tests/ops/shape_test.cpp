// Views and copies among the shape operations, and the errors they give. Values and gradients: the table of op cases.
#include "runtime/ops/shape.h"

#include <gtest/gtest.h>

#include "runtime/autograd/engine.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/reduction.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using test::random_tensor;
using test::values_of;

bool shares_memory(const Tensor& a, const Tensor& b) { return a.storage() == b.storage(); }

TEST(ShapeOps, ViewsCopyNothing) {
  const Tensor x = random_tensor({4, 6}, 1);
  EXPECT_TRUE(shares_memory(ops::reshape(x, {3, -1}), x));
  EXPECT_TRUE(shares_memory(ops::transpose(x, 0, 1), x));
  EXPECT_TRUE(shares_memory(ops::permute(x, {1, 0}), x));
  EXPECT_TRUE(shares_memory(ops::slice(x, -1, 2, 5), x));
  EXPECT_TRUE(shares_memory(ops::broadcast_to(x, {2, 4, 6}), x));
  EXPECT_TRUE(shares_memory(ops::unsqueeze(x, 1), x));
  EXPECT_TRUE(shares_memory(ops::split(x, {1, 3}, 0)[1], x));
  EXPECT_TRUE(ops::contiguous(x).same(x));
  EXPECT_TRUE(ops::cast(x, DType::f64).same(x));
  // A transposed matrix has to be copied before it can be reshaped.
  EXPECT_FALSE(shares_memory(ops::reshape(ops::transpose(x, 0, 1), {24}), x));
  EXPECT_EQ(ops::squeeze(ops::unsqueeze(x, -1), -1).shape(), x.shape());
  EXPECT_EQ(ops::reshape(x, x.shape()).shape(), x.shape());
}

TEST(ShapeOps, CastRoundsForwardAndCastsTheGradientBack) {
  Tensor x = Tensor::full({3}, 1.00390625f);
  autograd::set_requires_grad(x, true);
  const Tensor y = ops::cast(x, DType::bf16);
  EXPECT_EQ(values_of(y), std::vector<double>(3, 1.0));
  autograd::backward(ops::sum(ops::scale(y, 3)));
  EXPECT_EQ(autograd::grad_of(x).dtype(), DType::f32);
  EXPECT_EQ(values_of(autograd::grad_of(x)), std::vector<double>(3, 3.0));
  EXPECT_FALSE(autograd::requires_grad(ops::cast(x, DType::i64)));
}

// Parts of one tensor used apart: each adds to its own place, the rest stays zero.
TEST(ShapeOps, GradientsOfPartsMeetInOneTensor) {
  Tensor x = Tensor::full({4, 3}, 2);
  autograd::set_requires_grad(x, true);
  const auto parts = ops::split(x, {1, 2, 1}, 0);
  autograd::backward(ops::add(ops::sum(ops::square(parts[1])), ops::sum(parts[2])));
  EXPECT_EQ(values_of(autograd::grad_of(x)), (std::vector<double>{0, 0, 0, 4, 4, 4, 4, 4, 4, 1, 1, 1}));
}

TEST(ShapeOps, ErrorsNameTheShapes) {
  const Tensor x = random_tensor({4, 6}, 1);
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(message([&] { ops::reshape(x, {5, 5}); }).find("[4, 6] to [5, 5]"), std::string::npos);
  EXPECT_NE(message([&] { ops::reshape(x, {5, -1}); }).find("does not divide"), std::string::npos);
  EXPECT_NE(message([&] { ops::reshape(x, {-1, -1}); }).find("more than one"), std::string::npos);
  EXPECT_NE(message([&] { ops::concat({x, random_tensor({4, 5}, 1)}, 0); }).find("f64[4, 5] does not fit f64[4, 6]"), std::string::npos);
  EXPECT_NE(message([&] { ops::split(x, {1, 2}, 0); }).find("[1, 2] do not add up"), std::string::npos);
  EXPECT_NE(message([&] { ops::slice(x, 0, 3, 5); }).find("outside"), std::string::npos);
  EXPECT_NE(message([&] { ops::squeeze(x, 0); }).find("is not 1"), std::string::npos);
  EXPECT_NE(message([&] { ops::concat({}, 0); }).find("no tensors"), std::string::npos);
  EXPECT_NE(message([&] { ops::gather(x, 1, Tensor::zeros({4, 2}, DType::f32)); }).find("i32 or i64"), std::string::npos);
}

}  // namespace
}  // namespace rz
