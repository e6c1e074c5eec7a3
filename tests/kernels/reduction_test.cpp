// Reductions against sums in double, on shapes that take every path; and their bits for any thread count.
#include "runtime/kernels/reduction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using test::random_tensor;
using test::values_of;

ReductionKernels& kernels() { return *backend({}).reduction; }
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Case {
  Shape shape;
  std::vector<int> dims;
};
const Case kCases[] = {
    {{7}, {0}},           {{100000}, {0}},       {{3, 40000}, {1}},     {{5000, 3}, {0}},  {{3000, 700}, {0}},     {{64, 384}, {1}},
    {{4, 300, 20}, {1}},  {{4, 30, 20}, {0, 2}}, {{4, 30, 20}, {0, 1}}, {{1, 50, 1}, {1}}, {{6, 5, 4, 3}, {1, 3}}, {{2, 3}, {0, 1}},
    {{2, 20000, 2}, {1}}, {{5, 3}, {}}};

// The reduction by its definition.
std::vector<double> naive(const Tensor& x, const std::vector<int>& dims, ReduceOp op) {
  Strides strides{};
  int64_t stride = 1;
  double count = 1;
  for (int d = x.rank() - 1; d >= 0; --d) {
    const bool reduced = std::find(dims.begin(), dims.end(), d) != dims.end();
    strides[static_cast<size_t>(d)] = reduced ? 0 : stride;
    if (reduced)
      count *= static_cast<double>(x.size(d));
    else
      stride *= x.size(d);
  }
  const double start = op == ReduceOp::max ? -1e300 : op == ReduceOp::min ? 1e300 : op == ReduceOp::prod ? 1 : 0;
  std::vector<double> out(static_cast<size_t>(stride), start);
  const auto values = values_of(x);
  for (size_t i = 0; i < values.size(); ++i) {
    int64_t rest = static_cast<int64_t>(i), at = 0;
    for (int d = x.rank() - 1; d >= 0; --d) {
      at += rest % x.size(d) * strides[static_cast<size_t>(d)];
      rest /= x.size(d);
    }
    double& to = out[static_cast<size_t>(at)];
    switch (op) {
      case ReduceOp::max:
        to = std::max(to, values[i]);
        break;
      case ReduceOp::min:
        to = std::min(to, values[i]);
        break;
      case ReduceOp::prod:
        to *= values[i];
        break;
      default:
        to += values[i];
    }
  }
  if (op == ReduceOp::mean)
    for (double& v : out) v /= count;
  return out;
}

Shape kept(const Shape& shape, const std::vector<int>& dims) {
  Shape out = shape;
  for (const int d : dims) out = out.with(d, 1);
  return out;
}

TEST(Reduce, EveryOpShapeAndType) {
  for (const DType type : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min, ReduceOp::prod})
      for (const Case& c : kCases) {
        const bool product = op == ReduceOp::prod;
        const Tensor x = random_tensor(c.shape, 1, product ? 0.9999 : -1, product ? 1.0001 : 1, type);
        Tensor out = Tensor::empty(kept(c.shape, c.dims), type);
        kernels().reduce(op, x, c.dims, out);
        const auto got = values_of(out), want = naive(x, c.dims, op);
        const double epsilon = type == DType::f64 ? 1e-14 : type == DType::f32 ? 1.2e-7 : type == DType::f16 ? 1e-3 : 8e-3;
        ASSERT_EQ(got.size(), want.size());
        // Sums are taken in double: only the result is rounded.
        for (size_t i = 0; i < got.size(); ++i)
          ASSERT_NEAR(got[i], want[i], epsilon * std::max(type == DType::f64 ? 100.0 : 1e-3, std::abs(want[i])))
              << name(type) << " " << c.shape.str() << " op " << static_cast<int>(op);
      }
}

TEST(Reduce, AnyThreadCountGivesTheSameBits) {
  for (const Case& c : kCases) {
    std::vector<double> first;
    for (const int threads : {1, 2, 3, 5}) {
      const auto context = RankContext::make(0, threads);
      const RankContextScope scope(context);
      const Tensor x = random_tensor(c.shape, 1, -1, 1, DType::f64);
      Tensor out = Tensor::empty(kept(c.shape, c.dims), DType::f64);
      kernels().reduce(ReduceOp::sum, x, c.dims, out);
      if (first.empty()) first = values_of(out);
      EXPECT_EQ(values_of(out), first) << c.shape.str() << " with " << threads << " threads";
    }
  }
}

TEST(Reduce, StridedInputsAndAccumulation) {
  const Tensor x = random_tensor({30, 20, 10}, 1);
  Tensor out = Tensor::full({10, 30}, 5, DType::f64);
  kernels().reduce(ReduceOp::sum, x.view_permute({2, 1, 0}), std::vector<int>{1}, out, true);
  const auto want = naive(x, {1}, ReduceOp::sum);
  for (int64_t i = 0; i < 10; ++i)
    for (int64_t j = 0; j < 30; ++j) EXPECT_NEAR(out.data<double>()[i * 30 + j], 5 + want[static_cast<size_t>(j * 10 + i)], 1e-13);
}

TEST(Reduce, NothingAndNaN) {
  Tensor out = Tensor::empty({3});
  kernels().reduce(ReduceOp::sum, Tensor::empty({0, 3}), std::vector<int>{0}, out);
  EXPECT_EQ(values_of(out), std::vector<double>(3, 0));
  EXPECT_THROW(kernels().reduce(ReduceOp::max, Tensor::empty({0, 3}), std::vector<int>{0}, out), Error);
  Tensor one = Tensor::empty({1});
  for (int at = 0; at < 40; ++at) {
    std::vector<float> values(40, 1);
    values[static_cast<size_t>(at)] = kNaN;
    for (const ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
      kernels().reduce(op, Tensor::of<float>({1, 40}, values), std::vector<int>{1}, one);
      EXPECT_TRUE(std::isnan(one.item())) << at;
    }
  }
}

TEST(Reduce, Errors) {
  Tensor out = Tensor::empty({3});
  EXPECT_THROW(kernels().reduce(ReduceOp::sum, Tensor::empty({2, 4}), std::vector<int>{0}, out), Error);
  EXPECT_THROW(kernels().reduce(ReduceOp::sum, Tensor::empty({2, 3}), std::vector<int>{0, 0}, out), Error);
  EXPECT_THROW(kernels().reduce(ReduceOp::sum, Tensor::empty({2, 3}), std::vector<int>{2}, out), Error);
  EXPECT_THROW(kernels().reduce(ReduceOp::sum, Tensor::empty({2, 3}, DType::i64), std::vector<int>{0}, out), Error);
}

TEST(SumToShape, UndoesEveryBroadcast) {
  const Tensor x = random_tensor({4, 3, 5}, 1);
  const std::pair<Shape, std::vector<int>> rows[] = {{{5}, {0, 1}},   {{3, 1}, {0, 2}},       {{4, 1, 5}, {1}},
                                                     {{}, {0, 1, 2}}, {{1, 1, 1}, {0, 1, 2}}, {{4, 3, 5}, {}}};
  for (const auto& [shape, dims] : rows) {
    Tensor out = Tensor::full(shape, 1, DType::f64);
    kernels().sum_to_shape(x, out, true);
    const auto want = naive(x, dims, ReduceOp::sum);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(values_of(out)[i], 1 + want[i], 1e-13) << shape.str();
  }
  Tensor out = Tensor::empty({2}, DType::f64);
  EXPECT_THROW(kernels().sum_to_shape(x, out, false), Error);
}

TEST(Variance, OfRowsAndColumnsWithAndWithoutCorrection) {
  const Tensor x = random_tensor({20, 30}, 1, 99, 101, DType::f32);
  for (const int dim : {0, 1})
    for (const double correction : {0.0, 1.0}) {
      const int64_t n = x.size(dim), others = x.size(1 - dim);
      Tensor out = Tensor::empty({others}), mean = Tensor::empty({others});
      kernels().variance(x, std::vector<int>{dim}, correction, out, mean);
      const auto values = values_of(x.view_transpose(0, dim == 0 ? 1 : 0));  // [others, n]
      for (int64_t i = 0; i < others; ++i) {
        double m = 0, s = 0;
        for (int64_t k = 0; k < n; ++k) m += values[static_cast<size_t>(i * n + k)] / static_cast<double>(n);
        for (int64_t k = 0; k < n; ++k)
          s += std::pow(values[static_cast<size_t>(i * n + k)] - m, 2) / (static_cast<double>(n) - correction);
        EXPECT_NEAR(mean.data<float>()[i], m, 1e-5);
        EXPECT_NEAR(out.data<float>()[i], s, 1e-6);
      }
    }
}

TEST(ArgMax, FirstOfEqualsAndNaN) {
  const Tensor x = Tensor::of<float>({3, 4}, {1, 5, 5, 2, -1, -3, -1, -2, 0, kNaN, 9, kNaN});
  Tensor rows = Tensor::empty({3}, DType::i64), columns = Tensor::empty({1, 4}, DType::i64);
  kernels().arg_max(x, 1, rows);
  EXPECT_EQ(values_of(rows), (std::vector<double>{1, 0, 1}));
  kernels().arg_max(x, -2, columns);
  EXPECT_EQ(values_of(columns), (std::vector<double>{0, 2, 2, 2}));
}

TEST(CumulativeSum, BothDirectionsAndStrided) {
  const Tensor x = Tensor::of<double>({2, 3}, {1, 2, 3, 10, 20, 30});
  Tensor out = Tensor::empty({2, 3}, DType::f64), transposed = Tensor::full({3, 2}, 1, DType::f64);
  kernels().cumulative_sum(x, 1, false, out);
  EXPECT_EQ(values_of(out), (std::vector<double>{1, 3, 6, 10, 30, 60}));
  kernels().cumulative_sum(x, 1, true, out);
  EXPECT_EQ(values_of(out), (std::vector<double>{6, 5, 3, 60, 50, 30}));
  kernels().cumulative_sum(x.view_transpose(0, 1), 1, false, transposed, true);
  EXPECT_EQ(values_of(transposed), (std::vector<double>{2, 12, 3, 23, 4, 34}));
}

TEST(TopK, LargestFirstAndStable) {
  const Tensor x = Tensor::of<float>({2, 5}, {3, 1, 3, 2, 5, 0, 0, -1, kNaN, 0});
  Tensor values = Tensor::empty({2, 3}), indices = Tensor::empty({2, 3}, DType::i64);
  kernels().top_k(x, 3, values, indices);
  EXPECT_EQ(values_of(indices), (std::vector<double>{4, 0, 2, 3, 0, 1}));
  EXPECT_EQ(values.data<float>()[0], 5);
  EXPECT_TRUE(std::isnan(values.data<float>()[3]));
  EXPECT_THROW(kernels().top_k(x, 6, values, indices), Error);
}

}  // namespace
}  // namespace rz
