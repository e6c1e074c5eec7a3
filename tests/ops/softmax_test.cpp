#include "runtime/ops/softmax.h"

#include <numbers>

#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Reference {
  Values softmax, log_softmax, logsumexp;
};

Reference reference(const Values& x, int64_t width) {
  Reference r;
  for (size_t row = 0; row < x.size() / static_cast<size_t>(width); ++row) {
    const double* v = x.data() + row * static_cast<size_t>(width);
    const double max = *std::max_element(v, v + width);
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += max == -kInfinity ? 0 : std::exp(v[i] - max);
    const double lse = max == -kInfinity ? -kInfinity : max + std::log(sum);
    r.logsumexp.push_back(lse);
    for (int64_t i = 0; i < width; ++i) {
      r.softmax.push_back(lse == -kInfinity ? 0 : std::exp(v[i] - lse));
      r.log_softmax.push_back(v[i] == -kInfinity ? -kInfinity : v[i] - lse);
    }
  }
  return r;
}

TEST(Softmax, MatchesTheReferenceAtEveryWidth) {
  for (const int64_t width : {1, 2, 15, 16, 17, 31, 33, 64, 100, 1023, 1024, 1025, 2500}) {
    const Tensor wide = random_tensor({3, width}, 7, -20, 20);
    for (const auto& [dtype, tolerance] : {std::pair{DType::f64, 1e-13}, {DType::f32, 4e-6}, {DType::bf16, 2e-2}, {DType::f16, 2e-3}}) {
      const Tensor x = random_tensor({3, width}, 7, -20, 20, dtype);
      const Reference want = reference(values_of(x), width);
      EXPECT_LT(largest_error(ops::softmax(x), want.softmax), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::log_softmax(x), want.log_softmax), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::logsumexp(x), want.logsumexp), tolerance) << x.str();
    }
  }
}

TEST(Softmax, IsStableForLargeValues) {
  const Tensor x = Tensor::of<float>({2, 3}, {1e30f, 1e30f, -1e30f, 3e38f, -3e38f, 0});
  EXPECT_EQ(values_of(ops::softmax(x)), (Values{0.5, 0.5, 0, 1, 0, 0}));
  EXPECT_EQ(values_of(ops::logsumexp(x))[1], static_cast<double>(3e38f));
  EXPECT_LT(largest_error(ops::log_softmax(Tensor::of<float>({1, 2}, {-1e6f, -1e6f})), {-std::numbers::ln2, -std::numbers::ln2}), 1e-7);
}

TEST(Softmax, MaskedEntriesAndRows) {
  const auto low = -std::numeric_limits<float>::infinity();
  Tensor x = leaf(Tensor::of<float>({3, 2}, {low, low, low, 5, 1, 1}));
  EXPECT_EQ(values_of(ops::softmax(x)), (Values{0, 0, 0, 1, 0.5, 0.5}));
  EXPECT_EQ(values_of(ops::log_softmax(x))[0], -kInfinity);
  EXPECT_EQ(values_of(ops::log_softmax(x))[3], 0);
  EXPECT_EQ(values_of(ops::logsumexp(x))[0], -kInfinity);
  EXPECT_EQ(values_of(ops::logsumexp(x))[1], 5);
  using Op = Tensor (*)(const Tensor&, int);
  for (const Op op : {Op{&ops::softmax}, Op{&ops::log_softmax}, Op{&ops::logsumexp}}) {
    const Tensor y = op(x, -1);
    autograd::backward(y, {.grad = Tensor::full(y.shape(), 2)});
    for (const double g : values_of(autograd::grad_of(x))) EXPECT_TRUE(std::isfinite(g));
    EXPECT_EQ(values_of(autograd::grad_of(x))[0], 0);
    autograd::clear_grad(x);
  }
}

TEST(Softmax, FaultsSpreadThroughTheirRowOnly) {
  const float nan = std::nanf("");
  const Tensor x = Tensor::of<float>({3, 3}, {1, nan, 2, 1, std::numeric_limits<float>::infinity(), 0, 0, 0, 0});
  const auto y = values_of(ops::softmax(x));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[2]) && std::isnan(y[4]));
  EXPECT_NEAR(y[6], 1.0 / 3, 1e-7);
}

TEST(Softmax, Gradients) {
  for (const int dim : {-1, 0, 1}) {
    const Tensor x = random_tensor({3, 4, 5}, 11, -2, 2);
    expect_gradients_match([&](const auto& in) { return ops::softmax(in[0], dim); }, {x}, {.name = "softmax"});
    expect_gradients_match([&](const auto& in) { return ops::log_softmax(in[0], dim); }, {x}, {.name = "log_softmax"});
    expect_gradients_match([&](const auto& in) { return ops::logsumexp(in[0], dim); }, {x}, {.name = "logsumexp"});
  }
}

TEST(Softmax, OtherDimensionsAndViews) {
  const Tensor x = random_tensor({3, 4, 5, 2}, 3);
  for (const int dim : {0, 1, 2}) {
    const Tensor turned = contiguous_copy(x.view_transpose(dim, 3));
    EXPECT_EQ(values_of(ops::softmax(x, dim)), values_of(ops::softmax(turned).view_transpose(dim, 3)));
  }
  const Tensor lse = ops::logsumexp(x, 1);
  EXPECT_EQ(lse.shape(), (Shape{3, 5, 2}));
  // Element [2, 4, 1] by hand.
  double sum = 0;
  for (int64_t i = 0; i < 4; ++i) sum += std::exp(x.data<double>()[2 * 40 + i * 10 + 4 * 2 + 1]);
  EXPECT_NEAR(values_of(lse)[2 * 10 + 4 * 2 + 1], std::log(sum), 1e-14);
}

TEST(Softmax, SameBitsForAnyThreads) {
  const Tensor x = random_tensor({301, 257}, 5, -9, 9, DType::f32);
  expect_same_bits_for_any_threads([&] {
    Tensor in = leaf(contiguous_copy(x));
    const Tensor y = ops::log_softmax(ops::softmax(in));
    autograd::backward(y, {.grad = contiguous_copy(x)});
    return std::vector<Tensor>{y, autograd::grad_of(in)};
  });
}

TEST(Softmax, Errors) {
  expect_error_names([] { ops::softmax(Tensor::zeros({2, 3}, DType::i32)); }, {"softmax", "i32[2, 3]"});
  expect_error_names([] { ops::softmax(Tensor::zeros({2, 3}), 2); }, {"[2, 3]"});
}

}  // namespace
}  // namespace rz
