// Fixed-point sums: nearest units, rounded once on the way back, independent of where they are cut.
#include "runtime/kernels/fixed_point.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"

namespace rz {
namespace {

FixedPointKernels& kernels() { return *backend(Device{}).fixed_point; }

// The grid's definition, element by element: nearest integer, halves away from zero.
int64_t reference_units(float x, int grid) { return static_cast<int64_t>(std::round(std::ldexp(static_cast<double>(x), -grid))); }

TEST(FixedPoint, AddsTheNearestUnits) {
  const Random random(1, "fixed point", 0, 0);
  std::vector<float> values = {0.0f, -0.0f, 1.0f, -1.0f, 0x1p-149f, -0x1.8p-140f, 0x1p-20f, -0x1p-21f, 0x1.fffffep-22f, 0x1p-22f};
  for (uint64_t i = 0; i < 1000; ++i)
    values.push_back(static_cast<float>(std::ldexp(random.normal(i), static_cast<int>(random.below(i + 5000, 58)) - 50)));
  const Tensor x = Tensor::of({static_cast<int64_t>(values.size())}, values);
  for (const int grid : {-20, -40, -52}) {
    Tensor sums = Tensor::zeros(x.shape(), DType::i64);
    const int32_t largest = kernels().add_fixed(x, grid, sums, false);
    float expected_largest = 0;
    for (float v : values) expected_largest = std::max(expected_largest, std::abs(v));
    EXPECT_EQ(std::bit_cast<float>(largest), expected_largest);
    kernels().add_fixed(x, grid, sums, true);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(sums.data<int64_t>()[i], 2 * reference_units(values[i], grid)) << values[i] << " on 2^" << grid;
  }
}

TEST(FixedPoint, SixteenBitNumbersAreAddedAsTheFloatsTheyAre) {
  constexpr int64_t kCount = 5003;
  const Random random(3, "fixed point", 0, 0);
  std::vector<float> values(kCount);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(std::ldexp(random.normal(i), static_cast<int>(i % 24) - 12));
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Tensor narrow = Tensor::zeros({kCount}, dtype), wide = Tensor::zeros({kCount});
    backend(Device{}).elementwise->copy(Tensor::of({kCount}, values), narrow);
    backend(Device{}).elementwise->copy(narrow, wide);
    Tensor expected = Tensor::zeros({kCount}, DType::i64), sums = Tensor::zeros({kCount}, DType::i64);
    for (const bool accumulate : {false, true})
      EXPECT_EQ(kernels().add_fixed(narrow, -40, sums, accumulate), kernels().add_fixed(wide, -40, expected, accumulate));
    EXPECT_EQ(sums.to_vector<int64_t>(), expected.to_vector<int64_t>()) << name(dtype);
    Tensor one = narrow.view_slice(0, 41, 42);
    backend(Device{}).elementwise->copy(Tensor::full({1}, INFINITY), one);
    EXPECT_EQ(exponent_of_bits(kernels().add_fixed(narrow, -40, sums, false)), 129);
  }
  Tensor sums = Tensor::zeros({4}, DType::i64);
  EXPECT_THROW(kernels().add_fixed(Tensor::zeros({4}, DType::f64), -40, sums, false), Error);
}

TEST(FixedPoint, TheLargestMagnitudeShowsWhatIsNotFinite) {
  for (const float odd : {INFINITY, -INFINITY, NAN, -NAN}) {
    std::vector<float> values(100, 3.0f);
    values[41] = odd;
    Tensor sums = Tensor::zeros({100}, DType::i64);
    const int32_t largest = kernels().add_fixed(Tensor::of({100}, values), -30, sums, false);
    EXPECT_GE(exponent_of_bits(largest), 129);
  }
}

TEST(FixedPoint, ReturnsToFloatRoundedOnce) {
  // 2^60 + 2^36 + 1 lies just above the middle of two float32 numbers: rounding to double first would lose that.
  const std::vector<int64_t> sums = {1, -1, (int64_t{1} << 60) + (int64_t{1} << 36) + 1, -((int64_t{1} << 40) + 3), INT64_MAX};
  Tensor out = Tensor::zeros({5});
  kernels().to_float(Tensor::of({5}, sums), -50, out);
  for (size_t i = 0; i < sums.size(); ++i) EXPECT_EQ(out.data<float>()[i], std::ldexp(static_cast<float>(sums[i]), -50));
  EXPECT_GT(out.data<float>()[2], 0x1p10f);
}

TEST(FixedPoint, SquaresDoNotDependOnTheCut) {
  constexpr int64_t kCount = 20000;
  const Random random(2, "squares", 0, 0);
  std::vector<float> values(kCount);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i) * 1e-3);
  const Tensor x = Tensor::of({kCount}, values);
  constexpr int kBound = -6;
  const Int128 whole = kernels().sum_of_squares(x, kBound);
  for (const int64_t cut : {int64_t{1}, int64_t{17}, int64_t{4096}, int64_t{9999}})
    EXPECT_TRUE(whole ==
                kernels().sum_of_squares(x.view_slice(0, 0, cut), kBound) + kernels().sum_of_squares(x.view_slice(0, cut, kCount), kBound));
  long double expected = 0;
  for (const float v : values) expected += static_cast<long double>(v) * v;
  const double unit = std::ldexp(1.0, 2 * kBound - kSquareBits);
  EXPECT_NEAR(static_cast<double>(whole) * unit, static_cast<double>(expected),
              0.5 * kCount * unit + 1e-15 * static_cast<double>(expected));
}

}  // namespace
}  // namespace rz
