// Pooling, upsampling, convolution and group norm: what the table of op cases (tests/support/op_case_rows.cpp) does not show.
#include "runtime/ops/image.h"

#include <limits>

#include "runtime/kernels/backend.h"
#include "runtime/ops/conv.h"
#include "runtime/ops/group_norm.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/shape.h"
#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;

TEST(MaxPool, TiesGoToTheFirstAndANanWins) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  Tensor x = leaf(Tensor::of<double>({1, 2, 6, 1}, {3, 3, -inf, -inf, 1, nan, 3, 1, -inf, -inf, 9, 2}));
  const Tensor y = ops::max_pool(x);
  const Values v = values_of(y);
  EXPECT_EQ(v[0], 3);
  EXPECT_EQ(v[1], -inf);
  EXPECT_TRUE(std::isnan(v[2]));
  autograd::backward(y, {.grad = Tensor::of<double>({1, 1, 3, 1}, {1, 2, 4})});
  EXPECT_EQ(values_of(autograd::grad_of(x)), (Values{1, 0, 2, 0, 0, 4, 0, 0, 0, 0, 0, 0}));
}

TEST(GroupNorm, AFarMeanDoesNotCancel) {
  // 1e4 + small: E[x^2] - E[x]^2 would lose every digit of the variance in float32.
  Tensor x = random_tensor({2, 5, 5, 8}, 1, -0.5, 0.5, DType::f32), near = Tensor::empty(x.shape(), DType::f64);
  for (int64_t i = 0; i < x.numel(); ++i) {
    x.data<float>()[i] += 1e4f;
    near.data<double>()[i] = static_cast<double>(x.data<float>()[i]) - 1e4;
  }
  EXPECT_LT(largest_error(ops::group_norm(x, {}, {}, {2}), values_of(ops::group_norm(near, {}, {}, {2}))), 5e-3);
}

TEST(GroupNorm, SixteenBitInputsTakeFloat32Parameters) {
  const Tensor x = random_tensor({2, 9, 4}, 1, -1, 1, DType::bf16);
  Tensor w = leaf(random_tensor({4}, 2, 0.5, 1.5, DType::f32));
  const Tensor y = ops::group_norm(x, w, {}, {2});
  EXPECT_EQ(y.dtype(), DType::bf16);
  autograd::backward(y, {.grad = Tensor::full(y.shape(), 1, DType::bf16)});
  EXPECT_EQ(autograd::grad_of(w).dtype(), DType::f32);
}

TEST(GroupNorm, SamplesAreIndependent) {
  const Tensor x = random_tensor({3, 4, 4, 6}, 1, -2, 2, DType::f32), s = random_tensor({3, 6}, 2, -1, 1, DType::f32);
  const auto whole = bits_of(ops::group_norm(x, {}, {}, {3, 1e-5, true}, s, s));
  const auto one = bits_of(ops::group_norm(x.view_slice(0, 1, 2), {}, {}, {3, 1e-5, true}, s.view_slice(0, 1, 2), s.view_slice(0, 1, 2)));
  EXPECT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + static_cast<std::ptrdiff_t>(one.size())));
}

// More images than threads, fewer, and one: images are then cut into rows.
TEST(Conv2d, EmptyWeightsAreRefused) {
  const Tensor x = Tensor::full({1, 4, 4, 2}, 1);
  EXPECT_THROW(ops::conv2d(Tensor::empty({1, 4, 4, 0}), Tensor::empty({3, 3, 3, 0}), Tensor::full({3}, 2)), Error);
  EXPECT_THROW(ops::conv2d(x, Tensor::empty({3, 0, 3, 2}), {}), Error);
  EXPECT_THROW(ops::depthwise_conv2d(x, Tensor::empty({3, 0, 2}), {}), Error);
  // The kernels look at the rank themselves: the two kinds of weights differ in nothing else.
  Tensor y = Tensor::empty({1, 3, 3, 2});
  EXPECT_THROW(backend({}).conv->forward(x, Tensor::full({2, 2, 2}, 1), {}, {}, {}, y), Error);
  EXPECT_THROW(backend({}).conv->depthwise_forward(x, Tensor::full({1, 2, 2, 2}, 1), {}, {}, y), Error);
}

TEST(GroupNorm, ImagesWithoutPixelsGiveNoGradient) {
  Tensor weight = Tensor::full({4}, 1);
  autograd::set_requires_grad(weight, true);
  Tensor x = Tensor::empty({2, 0, 4});
  autograd::set_requires_grad(x, true);
  autograd::backward(ops::sum(ops::group_norm(x, weight, {}, {.groups = 2})));
  EXPECT_EQ(autograd::grad_of(weight).to_vector<float>(), (std::vector<float>(4, 0)));
}

TEST(Conv2d, SameBitsForAnyThreads) {
  for (const int64_t images : {1, 2, 5})
    for (const int64_t stride : {1, 2}) {
      const Tensor x = random_tensor({images, 13, 14, 32}, 1, -1, 1, DType::f32), w = random_tensor({48, 3, 3, 32}, 2, -1, 1, DType::f32);
      expect_same_bits_for_any_threads([&] {
        Tensor in = leaf(contiguous_copy(x)), weight = leaf(contiguous_copy(w)), bias = leaf(random_tensor({48}, 3, -1, 1, DType::f32));
        const Tensor y = ops::conv2d(in, weight, bias, {stride, 1});
        autograd::backward(y, {.grad = random_tensor(y.shape(), 4, -1, 1, DType::f32)});
        return std::vector<Tensor>{y, autograd::grad_of(in), autograd::grad_of(weight), autograd::grad_of(bias)};
      });
    }
}

TEST(Conv2d, AnImageDoesNotDependOnTheOthers) {
  const Tensor x = random_tensor({3, 7, 7, 20}, 1, -1, 1, DType::f32), w = random_tensor({24, 3, 3, 20}, 2, -1, 1, DType::f32);
  const auto whole = bits_of(ops::conv2d(x, w, {}, {1, 1}));
  const auto one = bits_of(ops::conv2d(x.view_slice(0, 1, 2), w, {}, {1, 1}));
  EXPECT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + static_cast<std::ptrdiff_t>(one.size())));
}

// A neighbour that is not finite touches what sees it and nothing else: the zeros around an image are not products.
TEST(Conv2d, WhatIsNotFiniteStaysWhereItIs) {
  Tensor x = random_tensor({1, 6, 20, 17}, 1, -1, 1, DType::f32);
  x.data<float>()[(2 * 20 + 19) * 17 + 3] = std::numeric_limits<float>::quiet_NaN();
  for (const int64_t out : {5, 24}) {  // direct sums and Winograd's filtering
    const Values y = values_of(ops::conv2d(x, random_tensor({out, 3, 3, 17}, 2, -1, 1, DType::f32), {}, {1, 1}));
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t j = 0; j < 20; ++j)
        for (int64_t o = 0; o < out; ++o)
          EXPECT_EQ(std::isnan(y[static_cast<size_t>((i * 20 + j) * out + o)]), i >= 1 && i <= 3 && j >= 18) << i << ", " << j;
  }
}

TEST(Conv2d, OfOnePixelIsTheMatrixProduct) {
  const Tensor x = random_tensor({2, 3, 3, 10}, 1, -1, 1, DType::f32), w = random_tensor({6, 1, 1, 10}, 2, -1, 1, DType::f32);
  EXPECT_EQ(bits_of(ops::conv2d(x, w, {})), bits_of(ops::linear(x, ops::reshape(w, {6, 10}), {})));
}

TEST(Conv2d, EmptyBatch) {
  Tensor w = leaf(random_tensor({4, 3, 3, 2}, 2, -1, 1, DType::f32)), b = leaf(Tensor::zeros({4}));
  Tensor x = leaf(Tensor::zeros({0, 5, 5, 2}));
  const Tensor y = ops::conv2d(x, w, b, {1, 1});
  EXPECT_EQ(y.shape(), (Shape{0, 5, 5, 4}));
  autograd::backward(y, {.grad = Tensor::zeros(y.shape())});
  EXPECT_EQ(values_of(autograd::grad_of(w)), Values(4 * 9 * 2, 0));
}

TEST(Images, ErrorsNameTheShapes) {
  const Tensor x = Tensor::zeros({2, 5, 4, 3});
  expect_error_names([&] { ops::conv2d(x, Tensor::zeros({4, 3, 3, 2}), {}, {1, 1}); }, {"[2, 5, 4, 3]", "[4, 3, 3, 2]"});
  expect_error_names([&] { ops::conv2d(x, Tensor::zeros({4, 3, 3, 3}), Tensor::zeros({3}), {1, 1}); }, {"f32[3]", "[4, 3, 3, 3]"});
  expect_error_names([&] { ops::conv2d(x, Tensor::zeros({4, 7, 7, 3}), {}, {1, 1}); }, {"[4, 7, 7, 3]", "padding 1", "[2, 5, 4, 3]"});
  expect_error_names([&] { ops::conv2d(x, Tensor::zeros({4, 3, 3, 3}), {}, {0, 1}); }, {"stride 0"});
  expect_error_names([&] { ops::conv2d(x, Tensor::zeros({4, 3, 3, 3}, DType::f64), {}, {1, 1}); }, {"f64[4, 3, 3, 3]"});
  expect_error_names([&] { ops::depthwise_conv2d(x, Tensor::zeros({3, 3, 4}), {}); }, {"[2, 5, 4, 3]", "[3, 3, 4]"});
  expect_error_names([&] { ops::group_norm(x, {}, {}, {2}); }, {"3 channels", "2 groups"});
  expect_error_names([&] { ops::group_norm(x, Tensor::zeros({4}), {}, {3}); }, {"f32[4]", "[3]"});
  expect_error_names([&] { ops::group_norm(x, {}, {}, {3}, Tensor::zeros({1, 3}), Tensor::zeros({2, 3})); }, {"f32[1, 3]", "[2, 3]"});
  expect_error_names([&] { ops::layer_norm_modulate(x, Tensor::zeros({2, 3}), Tensor::zeros({3})); }, {"f32[3]", "[2, 5, 4, 3]"});
  expect_error_names([&] { ops::add_gated(x, x, Tensor::zeros({2, 4})); }, {"f32[2, 4]", "[2, 5, 4, 3]"});
  expect_error_names([&] { ops::add_gated(x, Tensor::zeros({2, 5, 3}), Tensor::zeros({2, 3})); }, {"[2, 5, 4, 3]", "f32[2, 5, 3]"});
  expect_error_names([&] { ops::max_pool(x, {5, 1}); }, {"5 pixels", "[2, 5, 4, 3]"});
  expect_error_names([&] { ops::max_pool(Tensor::zeros({1, 20, 20, 1}), {17, 1}); }, {"17 x 17", "256"});
  expect_error_names([&] { ops::average_pool(Tensor::zeros({5, 4})); }, {"f32[5, 4]"});
  expect_error_names([&] { ops::upsample(x, 0); }, {"factor of 0"});
  expect_error_names([&] { ops::space_to_depth(x, 2); }, {"[2, 5, 4, 3]", "2 x 2"});
  expect_error_names([&] { ops::depth_to_space(x, 2); }, {"[2, 5, 4, 3]", "2 x 2"});
}

}  // namespace
}  // namespace rz
