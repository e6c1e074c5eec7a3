// The gradient check itself: right derivatives pass, each kind of wrong one is caught and named.
#include "tests/support/gradcheck.h"

#include <gtest/gtest.h>

#include "runtime/autograd/engine.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/shape.h"

namespace rz {
namespace {

using autograd::InputGradients;
using test::gradient_mismatches;
using test::random_tensor;

// square with a backward of our own.
template <class Backward>
test::TensorFunction square_with(Backward backward) {
  return [backward](const std::vector<Tensor>& in) {
    Tensor y = ops::square(ops::detach(in[0]));
    return autograd::record("square", y, {in[0]},
                            [backward, x = in[0].view_alias()](const Tensor& grad, InputGradients& to) { backward(x, grad, to); });
  };
}

TEST(Gradcheck, ARightDerivativePasses) {
  const auto f = square_with([](const Tensor& x, const Tensor& grad, InputGradients& to) { to.add(0, ops::scale(ops::mul(x, grad), 2)); });
  EXPECT_TRUE(gradient_mismatches(f, {random_tensor({3, 2}, 1)}).empty());
}

TEST(Gradcheck, AWrongFactorIsCaughtAndNamed) {
  const auto f =
      square_with([](const Tensor& x, const Tensor& grad, InputGradients& to) { to.add(0, ops::scale(ops::mul(x, grad), 2.0001)); });
  const auto found = gradient_mismatches(f, {random_tensor({3, 2}, 1)}, {.name = "mutant"});
  ASSERT_FALSE(found.empty());
  EXPECT_NE(found[0].find("mutant: input 0 [3, 2] element 0"), std::string::npos) << found[0];
}

TEST(Gradcheck, AMissingGradientIsCaught) {
  const auto f = square_with([](const Tensor&, const Tensor&, InputGradients&) {});
  EXPECT_FALSE(gradient_mismatches(f, {random_tensor({2}, 1)}).empty());
}

TEST(Gradcheck, IgnoringTheIncomingGradientIsCaught) {
  const auto f = square_with([](const Tensor& x, const Tensor&, InputGradients& to) { to.add(0, ops::scale(x, 2)); });
  EXPECT_FALSE(gradient_mismatches(f, {random_tensor({2}, 1)}).empty());
}

TEST(Gradcheck, OverwritingWhereOneShouldAddIsCaught) {
  const auto f = square_with([](const Tensor& x, const Tensor& grad, InputGradients& to) {
    const Tensor right = ops::scale(ops::mul(x, grad), 2);
    to.into(0, [&](Tensor& out, bool) { backend({}).elementwise->copy(right, out); });
  });
  EXPECT_FALSE(gradient_mismatches(f, {random_tensor({2}, 1)}).empty());
}

TEST(Gradcheck, AnErrorInOneElementOnlyIsCaught) {
  const auto f = square_with([](const Tensor& x, const Tensor& grad, InputGradients& to) {
    Tensor wrong = ops::scale(ops::mul(x, grad), 2);
    wrong.data<double>()[5] += 1e-4;
    to.add(0, wrong);
  });
  EXPECT_EQ(gradient_mismatches(f, {random_tensor({3, 2}, 1)}).size(), 1u);
}

// A two-layer network as a whole, every leaf.
TEST(Gradcheck, AWholeNetwork) {
  const auto f = [](const std::vector<Tensor>& in) {
    const Tensor h = ops::bias_gelu(ops::linear(in[0], in[1]), in[2]);
    const Tensor gated = ops::silu_mul(h, ops::linear(in[0], in[3]));
    return ops::mean(ops::square(ops::linear(ops::add(gated, h), in[4], in[5])), {0});
  };
  test::expect_gradients_match(f,
                               {random_tensor({4, 3}, 1), random_tensor({5, 3}, 2), random_tensor({5}, 3), random_tensor({5, 3}, 4),
                                random_tensor({2, 5}, 5), random_tensor({2}, 6)},
                               {.name = "network"});
}

}  // namespace
}  // namespace rz
