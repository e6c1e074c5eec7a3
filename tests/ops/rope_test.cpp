#include "runtime/ops/rope.h"

#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;

Values reference(const Tensor& x, int64_t offset, double base) {
  const Values v = values_of(x);
  Values y(v.size());
  const int64_t tokens = x.size(1);
  const int64_t heads = x.size(2);
  const int64_t width = x.size(3);
  for (int64_t row = 0; row < x.numel() / width; ++row) {
    const auto position = static_cast<double>(offset + row / heads % tokens);
    for (int64_t i = 0; i < width / 2; ++i) {
      const double angle = position * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(width));
      const auto low = static_cast<size_t>(row * width + i);
      const size_t high = low + static_cast<size_t>(width / 2);
      y[low] = v[low] * std::cos(angle) - v[high] * std::sin(angle);
      y[high] = v[high] * std::cos(angle) + v[low] * std::sin(angle);
    }
  }
  return y;
}

TEST(Rope, MatchesTheReference) {
  for (const int64_t width : {2, 6, 64, 80}) {
    for (const auto& [dtype, tolerance] : {std::pair{DType::f64, 1e-13}, {DType::f32, 1e-6}, {DType::bf16, 2e-2}}) {
      const auto table = ops::make_rope_table(600, width, 500.0, compute_dtype(dtype));
      const Tensor x = random_tensor({2, 5, 3, width}, 1, -1, 1, dtype);
      EXPECT_LT(largest_error(ops::rope(x, table), reference(x, 0, 500)), tolerance) << x.str();
      EXPECT_LT(largest_error(ops::rope(x, table, 595), reference(x, 595, 500)), tolerance) << x.str();
    }
  }
}

TEST(Rope, ProductsDependOnDistanceOnly) {
  const auto table = ops::make_rope_table(100, 8, 10000, DType::f64);
  const Tensor q = random_tensor({1, 1, 1, 8}, 1);
  const Tensor k = random_tensor({1, 1, 1, 8}, 2);
  const auto product = [&](int64_t at_q, int64_t at_k) {
    const Values a = values_of(ops::rope(q, table, at_q));
    const Values b = values_of(ops::rope(k, table, at_k));
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  EXPECT_NEAR(product(3, 10), product(60, 67), 1e-13);
  EXPECT_GT(std::abs(product(3, 10) - product(3, 11)), 1e-3);
}

TEST(Rope, GradientsAndViews) {
  const auto table = ops::make_rope_table(20, 6, 100, DType::f64);
  expect_gradients_match([&](const auto& in) { return ops::rope(in[0], table, 4); }, {random_tensor({2, 3, 2, 6}, 1)}, {.name = "rope"});
  const Tensor fused = random_tensor({2, 3, 4, 6}, 2);
  const Tensor part = fused.view_slice(2, 1, 3);
  EXPECT_EQ(values_of(ops::rope(part, table)), values_of(ops::rope(contiguous_copy(part), table)));
  const Tensor odd = random_tensor({2, 3, 6, 2}, 2).view_transpose(2, 3);  // last dimension strided
  EXPECT_EQ(values_of(ops::rope(odd, table)), values_of(ops::rope(contiguous_copy(odd), table)));
}

TEST(Rope, SameBitsForAnyThreads) {
  const auto table = ops::make_rope_table(50, 64);
  const Tensor x = random_tensor({8, 50, 4, 64}, 2, -1, 1, DType::f32);
  expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{ops::rope(x, table)}; });
}

TEST(Rope, Errors) {
  const auto table = ops::make_rope_table(10, 8);
  expect_error_names([&] { ops::rope(Tensor::zeros({1, 11, 1, 8}), table); }, {"positions [0, 11)", "[10, 8]"});
  const int64_t last = std::numeric_limits<int64_t>::max();
  expect_error_names([&] { ops::rope(Tensor::zeros({1, 2, 1, 8}), table, last); }, {fmt::format("positions [{}, ", last), "[10, 8]"});
  expect_error_names([&] { ops::rope(Tensor::zeros({1, 2, 1, 6}), table); }, {"[1, 2, 1, 6]", "[10, 8]"});
  expect_error_names([&] { ops::rope(Tensor::zeros({1, 2, 1, 8}, DType::f64), table); }, {"f64[1, 2, 1, 8]", "f32[10, 8]"});
  expect_error_names([&] { ops::rope(Tensor::zeros({1, 2, 8}), table); }, {"[1, 2, 8]"});
  expect_error_names([] { ops::make_rope_table(10, 7); }, {"7"});
}

}  // namespace
}  // namespace rz
