// Copies, conversions, accumulation and broadcasting of the elementwise family, on sizes that cross its blocks and threads.
// The functions themselves are checked by the table of op cases.
#include "runtime/kernels/elementwise.h"

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

ElementwiseKernels& kernels() { return *backend({}).elementwise; }
constexpr DType kAll[] = {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64, DType::u8};

// Small whole numbers: exact in every type.
Tensor whole_numbers(Shape shape, DType type) {
  Tensor t = Tensor::empty(shape, type);
  dispatch(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t i = 0; i < t.numel(); ++i) t.data<T>()[i] = static_cast<T>(static_cast<compute_t<T>>((i * 37 + 11) % 101));
  });
  return t;
}

TEST(Copy, EveryPairOfTypes) {
  for (const DType from : kAll)
    for (const DType to : kAll) {
      const Tensor x = whole_numbers({3, 701}, from);
      Tensor out = Tensor::empty({3, 701}, to);
      kernels().copy(x, out);
      EXPECT_EQ(values_of(out), values_of(x)) << name(from) << " to " << name(to);
    }
}

TEST(Copy, SixteenBitTypesRoundToNearestEven) {
  const Tensor x = Tensor::of<float>({4}, {1.00390625f, 1.01171875f, 3e38f, 65520.0f});
  Tensor b = Tensor::empty({4}, DType::bf16), h = Tensor::empty({4}, DType::f16);
  kernels().copy(x, b);
  kernels().copy(x, h);
  EXPECT_EQ(values_of(b)[0], 1.0);
  EXPECT_EQ(values_of(b)[1], 1.015625);
  EXPECT_TRUE(std::isinf(values_of(h)[2]));
  EXPECT_TRUE(std::isinf(values_of(h)[3]));
}

TEST(Copy, PermutationsOfSeveralShapesAndTypes) {
  const Shape shapes[] = {{5, 7}, {64, 64}, {33, 97}, {2, 3, 4}, {2, 40, 3, 36}, {3, 35, 34, 2}, {1, 50, 1, 40}};
  for (const DType type : {DType::f32, DType::bf16, DType::f64, DType::u8})
    for (const Shape& shape : shapes) {
      const Tensor x = whole_numbers(shape, type);
      std::vector<int> order(static_cast<size_t>(shape.rank()));
      for (int d = 0; d < shape.rank(); ++d) order[static_cast<size_t>(d)] = d;
      do {
        const Tensor view = x.view_permute(order);
        Tensor out = Tensor::empty(view.shape(), type);
        kernels().copy(view, out);
        ASSERT_EQ(values_of(out), values_of(view)) << view.str() << " of " << x.str();
        // The other way round: into a permuted view.
        Tensor back = Tensor::empty(shape, type);
        Tensor back_view = back.view_permute(order);
        kernels().copy(out, back_view);
        ASSERT_EQ(values_of(back), values_of(x)) << "into " << view.str();
      } while (std::next_permutation(order.begin(), order.end()));
    }
}

TEST(Copy, FromBroadcastViewsAndIntoSlices) {
  const Tensor row = whole_numbers({40}, DType::f32);
  Tensor out = Tensor::empty({3, 30, 40});
  kernels().copy(row.view_broadcast({3, 30, 40}), out);
  EXPECT_EQ(values_of(out), values_of(row.view_broadcast({3, 30, 40})));
  Tensor large = Tensor::zeros({5, 9});
  Tensor part = large.view_slice(0, 1, 4).view_slice(1, 2, 7);
  kernels().copy(Tensor::full({3, 5}, 1), part);
  kernels().fill(part, 2);
  kernels().add_into(Tensor::full({3, 5}, 3, DType::bf16), part, true);
  double total = 0;
  for (const double v : values_of(large)) total += v;
  EXPECT_EQ(total, 75);
  EXPECT_EQ(values_of(part), std::vector<double>(15, 5));
  EXPECT_THROW(kernels().copy(row, part), Error);
}

TEST(AddInto, AddsInTheDestinationsPrecision) {
  Tensor sum = Tensor::full({1000}, 1000);
  const Tensor small = Tensor::full({1000}, 0.125, DType::bf16);
  kernels().add_into(small, sum, true);
  EXPECT_EQ(values_of(sum), std::vector<double>(1000, 1000.125));
  kernels().add_into(small, sum, false);
  EXPECT_EQ(values_of(sum), std::vector<double>(1000, 0.125));
  Tensor narrow = Tensor::full({3}, 256, DType::bf16);
  kernels().add_into(Tensor::full({3}, 1), narrow, true);  // 257 rounds to even
  EXPECT_EQ(values_of(narrow), std::vector<double>(3, 256));
}

TEST(Elementwise, EveryPathGivesTheSameBitsForEveryThreadCount) {
  // Long rows, short rows, scalars, columns, transposed and 16-bit operands, accumulating or not.
  const Tensor x = random_tensor({60, 500}, 1, -1, 1, DType::f32);
  const Tensor transposed = random_tensor({500, 60}, 2, -1, 1, DType::f32).view_transpose(0, 1);
  const Tensor operands[] = {random_tensor({60, 500}, 3, -1, 1, DType::f32),
                             random_tensor({500}, 4, -1, 1, DType::f32),
                             random_tensor({60, 1}, 5, -1, 1, DType::f32),
                             Tensor::full({}, 0.3),
                             transposed,
                             random_tensor({60, 500}, 6, -1, 1, DType::bf16)};
  for (const Tensor& b : operands) {
    const auto want_b = values_of(b.view_broadcast({60, 500})), want_x = values_of(x);
    std::vector<double> first;
    for (const int threads : {1, 2, 3}) {
      const auto context = RankContext::make(0, threads);
      const RankContextScope scope(context);
      Tensor out = Tensor::full({60, 500}, 1);
      kernels().binary(BinaryOp::mul, x, b, out);
      const auto product = values_of(out);
      for (size_t i = 0; i < want_x.size(); ++i)
        ASSERT_EQ(product[i], static_cast<double>(static_cast<float>(want_x[i] * want_b[i]))) << b.str();
      kernels().binary_gradient(BinaryOp::mul, 0, x, Tensor(), b, out, true);
      const auto values = values_of(out);
      if (first.empty()) first = values;
      EXPECT_EQ(values, first) << b.str() << " with " << threads << " threads";
      for (size_t i = 0; i < values.size(); i += 97) EXPECT_NEAR(values[i], 2 * want_x[i] * want_b[i], 1e-6);
    }
  }
}

TEST(Elementwise, ComparisonsAndSelection) {
  const Tensor a = Tensor::of<float>({4}, {1, 2, 3, std::numeric_limits<float>::quiet_NaN()}), b = Tensor::of<float>({}, {2});
  Tensor out = Tensor::empty({4}, DType::u8);
  const std::pair<CompareOp, std::vector<double>> rows[] = {{CompareOp::eq, {0, 1, 0, 0}}, {CompareOp::ne, {1, 0, 1, 1}},
                                                            {CompareOp::lt, {1, 0, 0, 0}}, {CompareOp::le, {1, 1, 0, 0}},
                                                            {CompareOp::gt, {0, 0, 1, 0}}, {CompareOp::ge, {0, 1, 1, 0}}};
  for (const auto& [op, want] : rows) {
    kernels().compare(op, a, b, out);
    EXPECT_EQ(values_of(out), want) << static_cast<int>(op);
  }
  const Tensor large = Tensor::of<int64_t>({2}, {int64_t{1} << 40, 5});
  Tensor same = Tensor::empty({2}, DType::u8);
  kernels().compare(CompareOp::eq, large, Tensor::of<int64_t>({2}, {(int64_t{1} << 40) + 1, 5}), same);
  EXPECT_EQ(values_of(same), (std::vector<double>{0, 1}));
}

TEST(Elementwise, EmptyTensorsAndErrors) {
  Tensor none = Tensor::empty({0, 3});
  kernels().unary(UnaryOp::exp, Tensor::empty({0, 3}), none);
  kernels().copy(Tensor::empty({0, 3}, DType::bf16), none);
  kernels().fill(none, 1);
  Tensor out = Tensor::empty({2});
  EXPECT_THROW(kernels().unary(UnaryOp::exp, Tensor::empty({3}), out), Error);
  EXPECT_THROW(kernels().binary(BinaryOp::add, Tensor::empty({3}), Tensor::empty({2}), out), Error);
  EXPECT_THROW(kernels().unary_gradient(UnaryOp::exp, out, Tensor(), out, false), Error);  // needs the output
}

TEST(Gather, IndexOutsideIsAnErrorNamingIt) {
  const Tensor x = Tensor::full({2, 3}, 1), index = Tensor::of<int64_t>({2, 1}, {0, 3});
  Tensor out = Tensor::empty({2, 1});
  try {
    kernels().gather(x, 1, index, out);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("index 3 is outside [0, 3)"), std::string::npos) << e.what();
  }
}

TEST(Gather, ScatterAddSumsInOrderOfTheIndex) {
  Tensor out = Tensor::zeros({3, 2});
  const Tensor index = Tensor::of<int32_t>({4, 2}, {0, 1, 0, 1, 2, 1, 0, 0}), x = Tensor::of<float>({4, 2}, {1, 2, 4, 8, 16, 32, 64, 128});
  kernels().scatter_add(x, 0, index, out);
  EXPECT_EQ(values_of(out), (std::vector<double>{69, 128, 0, 42, 16, 0}));
}

}  // namespace
}  // namespace rz
