// rz::math in float against the standard library in double, in units of the last place; special values; and the promise that an
// element's bits do not depend on where it lies.
#include "runtime/kernels/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Error in units of the last place of the result as a float; denormal results count in the smallest denormal.
double ulps(float got, double want) {
  if (std::isnan(want)) return std::isnan(got) ? 0 : kInfinity;
  const float rounded = static_cast<float>(want);
  if (std::isinf(rounded) || std::isinf(got)) return got == rounded ? 0 : kInfinity;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(rounded == 0 ? 1e-45f : rounded), -126) - 23);
  return std::abs(static_cast<double>(got) - want) / unit;
}

struct Accuracy {
  const char* name;
  float (*f)(float);
  double (*reference)(double);
  double low, high;
  double bound;  // ulp
};

const Accuracy kAccuracy[] = {
    {"exp", [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }, -104, 89, 1.5},
    {"exp near 0", [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }, -1, 1, 1.5},
    {"expm1", [](float x) { return math::expm1(x); }, [](double x) { return std::expm1(x); }, -20, 88.7, 3},
    {"expm1 near 0", [](float x) { return math::expm1(x); }, [](double x) { return std::expm1(x); }, -1, 1, 3},
    {"log", [](float x) { return math::log(x); }, [](double x) { return std::log(x); }, 0, 10, 2},
    {"log large", [](float x) { return math::log(x); }, [](double x) { return std::log(x); }, 1, 3e38, 2},
    {"log near 1", [](float x) { return math::log(x); }, [](double x) { return std::log(x); }, 0.9, 1.1, 2},
    {"log1p", [](float x) { return math::log1p(x); }, [](double x) { return std::log1p(x); }, -0.999, 10, 3},
    {"log1p near 0", [](float x) { return math::log1p(x); }, [](double x) { return std::log1p(x); }, -0.01, 0.01, 3},
    {"tanh", [](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }, -10, 10, 3},
    {"tanh near 0", [](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }, -0.1, 0.1, 3},
    {"sigmoid", [](float x) { return math::sigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80, 3},
    {"erf", [](float x) { return math::erf(x); }, [](double x) { return std::erf(x); }, -5, 5, 7},
    {"erf near 0", [](float x) { return math::erf(x); }, [](double x) { return std::erf(x); }, -0.1, 0.1, 7},
    {"rsqrt", [](float x) { return math::rsqrt(x); }, [](double x) { return 1 / std::sqrt(x); }, 1e-3, 1e3, 1.5},
};

TEST(Math, FloatFunctionsAreAccurateToAFewUlp) {
  const Random random(1, "math");
  for (const Accuracy& row : kAccuracy) {
    double worst = 0, at = 0;
    for (uint64_t i = 0; i < 200000; ++i) {
      const auto x = static_cast<float>(row.low + (row.high - row.low) * random.uniform64(2 * i));
      const double error = ulps(row.f(x), row.reference(static_cast<double>(x)));
      if (!(error <= worst)) worst = error, at = static_cast<double>(x);
    }
    EXPECT_LE(worst, row.bound) << row.name << " at " << at;
    RecordProperty(std::string("ulp ") + row.name, fmt::format("{:.2f}", worst));
  }
}

// Near multiples of pi a relative bound is hopeless; the absolute one is what positions and times need.
TEST(Math, SineAndCosineAreAccurateAbsolutely) {
  const Random random(2, "math");
  for (const double range : {1.0, 10.0, 1e3, 1e6})
    for (uint64_t i = 0; i < 100000; ++i) {
      const auto x = static_cast<float>(range * (2 * random.uniform64(2 * i) - 1));
      ASSERT_NEAR(math::sin(x), std::sin(static_cast<double>(x)), 1.2e-7) << x;
      ASSERT_NEAR(math::cos(x), std::cos(static_cast<double>(x)), 1.2e-7) << x;
    }
}

TEST(Math, SpecialValues) {
  for (auto* f :
       {+[](float x) { return math::exp(x); }, +[](float x) { return math::expm1(x); }, +[](float x) { return math::log(x); },
        +[](float x) { return math::log1p(x); }, +[](float x) { return math::tanh(x); }, +[](float x) { return math::sigmoid(x); },
        +[](float x) { return math::erf(x); }, +[](float x) { return math::sin(x); }, +[](float x) { return math::cos(x); }})
    EXPECT_TRUE(std::isnan(f(kNaN)));
  EXPECT_EQ(math::exp(kInfinity), kInfinity);
  EXPECT_EQ(math::exp(-kInfinity), 0.0f);
  EXPECT_EQ(math::exp(88.8f), kInfinity);
  EXPECT_EQ(math::exp(0.0f), 1.0f);
  EXPECT_EQ(math::expm1(kInfinity), kInfinity);
  EXPECT_EQ(math::expm1(-kInfinity), -1.0f);
  EXPECT_EQ(math::expm1(1e-30f), 1e-30f);
  EXPECT_EQ(math::log(0.0f), -kInfinity);
  EXPECT_EQ(math::log(1.0f), 0.0f);
  EXPECT_EQ(math::log(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(math::log(-1.0f)));
  EXPECT_EQ(math::log1p(-1.0f), -kInfinity);
  EXPECT_EQ(math::log1p(kInfinity), kInfinity);
  EXPECT_EQ(math::log1p(1e-30f), 1e-30f);
  EXPECT_TRUE(std::isnan(math::log1p(-1.5f)));
  EXPECT_EQ(math::tanh(kInfinity), 1.0f);
  EXPECT_EQ(math::tanh(-kInfinity), -1.0f);
  EXPECT_EQ(math::tanh(1e-30f), 1e-30f);
  EXPECT_EQ(math::erf(kInfinity), 1.0f);
  EXPECT_EQ(math::erf(-20.0f), -1.0f);
  for (float x = 3.5f; x < 4.5f; x += 1e-4f) EXPECT_LE(std::abs(math::erf(x)), 1.0f) << x;
  EXPECT_EQ(math::sigmoid(kInfinity), 1.0f);
  EXPECT_EQ(math::sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(math::sin(0.0f), 0.0f);
  EXPECT_EQ(math::cos(0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(math::max(kNaN, 1.0f)) && std::isnan(math::max(1.0f, kNaN)) && std::isnan(math::min(kNaN, 1.0f)) &&
              std::isnan(math::min(1.0f, kNaN)));
}

// Computing on any part of a tensor gives the bits that computing on the whole gives, for every op of the list.
TEST(Math, BitsDoNotDependOnPosition) {
  constexpr int64_t kCount = 1000;
  auto& kernels = *backend({}).elementwise;
#define RZ_ROW(name, Functor, low, high, ...) {UnaryOp::name, low, high},
  const struct {
    UnaryOp op;
    double low, high;
  } rows[] = {RZ_UNARY_OPS(RZ_ROW) RZ_SCALED_OPS(RZ_ROW)};
#undef RZ_ROW
  for (const auto& row : rows) {
    const OpScalars scalars{0.7, 1.3};
    const Tensor x = test::random_tensor({kCount}, 3, row.low, row.high, DType::f32),
                 g = test::random_tensor({kCount}, 4, -1, 1, DType::f32);
    Tensor y = Tensor::empty({kCount}), dx = Tensor::empty({kCount});
    kernels.unary(row.op, x, y, scalars);
    const Tensor& kept = keeps(row.op) == Keeps::output ? y : x;
    kernels.unary_gradient(row.op, g, kept, dx, false, scalars);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{1, kCount}, {17, 33}, {999, 1000}, {63, 66}, {5, 700}}) {
      Tensor part = Tensor::empty({end - begin}), part_dx = Tensor::empty({end - begin});
      kernels.unary(row.op, x.view_slice(0, begin, end), part, scalars);
      kernels.unary_gradient(row.op, g.view_slice(0, begin, end), kept.view_slice(0, begin, end), part_dx, false, scalars);
      EXPECT_EQ(test::values_of(part), test::values_of(y.view_slice(0, begin, end))) << name(row.op) << " from " << begin;
      EXPECT_EQ(test::values_of(part_dx), test::values_of(dx.view_slice(0, begin, end))) << name(row.op) << "' from " << begin;
    }
  }
}

}  // namespace
}  // namespace rz
