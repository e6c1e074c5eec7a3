#include "runtime/ops/norm.h"

#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;

Values reference(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, bool centred) {
  const Values v = values_of(x);
  const auto width = static_cast<size_t>(x.size(-1));
  const Values w = weight.defined() ? values_of(weight) : Values(width, 1);
  const Values b = bias.defined() ? values_of(bias) : Values(width, 0);
  Values y(v.size());
  for (size_t row = 0; row < v.size(); row += width) {
    double mean = 0;
    for (size_t i = 0; i < width && centred; ++i) mean += v[row + i] / static_cast<double>(width);
    double variance = 0;
    for (size_t i = 0; i < width; ++i) variance += (v[row + i] - mean) * (v[row + i] - mean) / static_cast<double>(width);
    for (size_t i = 0; i < width; ++i) y[row + i] = (v[row + i] - mean) / std::sqrt(variance + eps) * w[i] + b[i];
  }
  return y;
}

TEST(Norm, MatchesTheReference) {
  for (const int64_t width : {1, 3, 16, 17, 31, 32, 48, 100, 384, 769}) {
    for (const auto& [dtype, tolerance] : {std::pair{DType::f64, 1e-12}, {DType::f32, 4e-6}, {DType::bf16, 3e-2}, {DType::f16, 4e-3}}) {
      const Tensor x = random_tensor({2, 3, width}, 1, -3, 5, dtype);
      const Tensor w = random_tensor({width}, 2, -2, 2, dtype);
      const Tensor b = random_tensor({width}, 3, -2, 2, dtype);
      EXPECT_LT(largest_error(ops::layer_norm(x, w, b), reference(x, w, b, 1e-5, true)), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::layer_norm(x, w, Tensor()), reference(x, w, Tensor(), 1e-5, true)), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::layer_norm(x, Tensor(), Tensor(), 1e-3), reference(x, Tensor(), Tensor(), 1e-3, true)), tolerance);
      EXPECT_LT(largest_error(ops::rms_norm(x, w), reference(x, w, Tensor(), 1e-5, false)), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::rms_norm(x, Tensor()), reference(x, Tensor(), Tensor(), 1e-5, false)), tolerance) << x.str();
    }
  }
}

TEST(Norm, SixteenBitInputsTakeFloat32Parameters) {
  const Tensor x = random_tensor({4, 20}, 1, -1, 1, DType::bf16);
  Tensor w = leaf(random_tensor({20}, 2, -1, 1, DType::f32));
  const Tensor y = ops::rms_norm(x, w);
  EXPECT_EQ(y.dtype(), DType::bf16);
  EXPECT_LT(largest_error(y, reference(x, w, Tensor(), 1e-5, false)), 3e-2);
  autograd::backward(y, {.grad = Tensor::full(y.shape(), 1, DType::bf16)});
  EXPECT_EQ(autograd::grad_of(w).dtype(), DType::f32);
}

TEST(Norm, AFarMeanDoesNotCancel) {
  // 1e4 + small: E[x^2] - E[x]^2 would lose every digit of the variance in float32.
  Tensor x = random_tensor({5, 64}, 1, -0.5, 0.5, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] += 1e4f;
  EXPECT_LT(largest_error(ops::layer_norm(x, Tensor(), Tensor()), reference(x, Tensor(), Tensor(), 1e-5, true)), 5e-3);
}

TEST(Norm, Gradients) {
  for (const int64_t width : {1, 5, 19}) {
    const Tensor x = random_tensor({2, 9, width}, 1, -2, 2);
    const Tensor w = random_tensor({width}, 2);
    const Tensor b = random_tensor({width}, 3);
    expect_gradients_match([](const auto& in) { return ops::layer_norm(in[0], in[1], in[2]); }, {x, w, b}, {.name = "layer_norm"});
    expect_gradients_match([](const auto& in) { return ops::layer_norm(in[0], in[1], Tensor()); }, {x, w}, {.name = "layer_norm, no bias"});
    expect_gradients_match([](const auto& in) { return ops::layer_norm(in[0], Tensor(), Tensor()); }, {x}, {.name = "layer_norm, bare"});
    expect_gradients_match([](const auto& in) { return ops::rms_norm(in[0], in[1], 1e-2); }, {x, w}, {.name = "rms_norm"});
    expect_gradients_match([](const auto& in) { return ops::rms_norm(in[0], Tensor(), 1e-2); }, {x}, {.name = "rms_norm, bare"});
    // x constant: only the parameters' gradients are made.
    expect_gradients_match([&](const auto& in) { return ops::layer_norm(x, in[0], in[1]); }, {w, b}, {.name = "layer_norm, parameters"});
  }
  // Many rows: several blocks, of unequal sizes.
  const Tensor x = random_tensor({71, 3}, 1, -2, 2);
  expect_gradients_match([&](const auto& in) { return ops::layer_norm(x, in[0], in[1]); }, {random_tensor({3}, 2), random_tensor({3}, 3)},
                         {.name = "layer_norm, blocks"});
}

TEST(Norm, StridedInputAndGradient) {
  const Tensor x = random_tensor({4, 6}, 1);
  const Tensor turned = contiguous_copy(x.view_transpose(0, 1));
  EXPECT_EQ(values_of(ops::layer_norm(turned.view_transpose(0, 1), Tensor(), Tensor())), values_of(ops::layer_norm(x, Tensor(), Tensor())));
  Tensor a = leaf(contiguous_copy(x));
  const Tensor y = ops::rms_norm(a, Tensor());
  autograd::backward(y, {.grad = turned.view_transpose(0, 1), .retain_graph = true});
  const Values strided = values_of(autograd::grad_of(a));
  autograd::clear_grad(a);
  autograd::backward(y, {.grad = x});
  EXPECT_EQ(strided, values_of(autograd::grad_of(a)));
}

TEST(Norm, SameBitsForAnyThreads) {
  const Tensor x = random_tensor({1031, 96}, 5, -9, 9, DType::f32);
  expect_same_bits_for_any_threads([&] {
    Tensor in = leaf(contiguous_copy(x));
    Tensor w = leaf(random_tensor({96}, 2, -1, 1, DType::f32));
    Tensor b = leaf(random_tensor({96}, 3, -1, 1, DType::f32));
    const Tensor y = ops::rms_norm(ops::layer_norm(in, w, b), w);
    autograd::backward(y, {.grad = contiguous_copy(x)});
    return std::vector<Tensor>{y, autograd::grad_of(in), autograd::grad_of(w), autograd::grad_of(b)};
  });
}

TEST(Norm, EmptyBatch) {
  Tensor w = leaf(Tensor::zeros({4}));
  const Tensor y = ops::rms_norm(Tensor::zeros({0, 4}), w);
  EXPECT_EQ(y.shape(), (Shape{0, 4}));
  autograd::backward(y, {.grad = Tensor::zeros({0, 4})});
  EXPECT_EQ(values_of(autograd::grad_of(w)), Values(4, 0));
}

TEST(Norm, Errors) {
  expect_error_names([] { ops::layer_norm(Tensor::zeros({2, 3}), Tensor::zeros({4}), Tensor()); }, {"[2, 3]", "[4]"});
  expect_error_names([] { ops::layer_norm(Tensor::zeros({2, 3}), Tensor(), Tensor::zeros({3, 1})); }, {"[2, 3]", "[3, 1]"});
  expect_error_names([] { ops::rms_norm(Tensor::zeros({2, 3}), Tensor::zeros({3}, DType::f64)); }, {"f32[2, 3]", "f64[3]"});
}

}  // namespace
}  // namespace rz
