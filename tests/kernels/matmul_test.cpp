// Matrix products against a naive triple loop in double, over shapes at the edges of tiles and blocks, layouts and types; and
// what their bits may depend on.
#include "runtime/kernels/matmul.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using test::random_tensor;
using test::values_of;

// alpha op(a) op(b) of two matrices, in double.
std::vector<double> naive(const Tensor& a, const Tensor& b, const MatmulOptions& options) {
  const Tensor left = options.transpose_a ? a.view_transpose(0, 1) : a;
  const Tensor right = options.transpose_b ? b.view_transpose(0, 1) : b;
  const auto x = values_of(left), y = values_of(right);
  const int64_t m = left.size(0), k = left.size(1), n = right.size(1);
  std::vector<double> out(static_cast<size_t>(m * n), 0.0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p)
      for (int64_t j = 0; j < n; ++j)
        out[static_cast<size_t>(i * n + j)] += options.alpha * x[static_cast<size_t>(i * k + p)] * y[static_cast<size_t>(p * n + j)];
  return out;
}

double tolerance(DType t, int64_t k) {
  const double terms = std::sqrt(static_cast<double>(std::max<int64_t>(k, 1)));
  switch (t) {
    case DType::f64:
      return 1e-15 * terms * 4;
    case DType::f32:
      return 1.2e-7 * terms * 4;
    case DType::f16:
      return 1e-3 * terms;
    default:
      return 8e-3 * terms;
  }
}

void expect_close(const Tensor& out, const std::vector<double>& want, double bound, const std::string& what) {
  const auto got = values_of(out);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], bound * std::max(1.0, std::abs(want[i]))) << what << " element " << i;
}

MatmulKernels& kernels() { return *backend({}).matmul; }

TEST(Matmul, EveryShapeLayoutAndTypeMatchesTheNaiveProduct) {
  const int64_t sizes[][3] = {{1, 1, 1},    {1, 33, 7},   {2, 3, 5},     {12, 32, 16},   {13, 33, 17}, {11, 31, 385},
                              {5, 70, 800}, {64, 64, 64}, {200, 50, 40}, {30, 1100, 20}, {490, 40, 30}};
  for (const DType type : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (const auto& [m, n, k] : sizes)
      for (int layout = 0; layout < 4; ++layout) {
        MatmulOptions options{.transpose_a = (layout & 1) != 0, .transpose_b = (layout & 2) != 0};
        const Tensor a = random_tensor(options.transpose_a ? Shape{k, m} : Shape{m, k}, 1, -1, 1, type);
        const Tensor b = random_tensor(options.transpose_b ? Shape{n, k} : Shape{k, n}, 2, -1, 1, type);
        Tensor out = Tensor::full({m, n}, 99, type);
        kernels().matmul(a, b, out, options);
        const auto want = naive(a, b, options);
        const std::string what = fmt::format("{} {}x{}x{} layout {}", name(type), m, n, k, layout);
        expect_close(out, want, tolerance(type, k), what);

        options.accumulate = true;
        options.alpha = 0.5;
        auto sum = values_of(out);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += 0.5 * want[i];
        kernels().matmul(a, b, out, options);
        expect_close(out, sum, 2 * tolerance(type, k), what + " accumulated");
        if (testing::Test::HasFatalFailure()) return;
      }
}

TEST(Matmul, BiasIsAddedToEveryRow) {
  for (const DType type : {DType::f32, DType::f64, DType::bf16}) {
    const Tensor a = random_tensor({7, 500}, 1, -1, 1, type), b = random_tensor({1050, 500}, 2, -1, 1, type);
    Tensor bias = random_tensor({1050}, 3, -1, 1, type), out = Tensor::empty({7, 1050}, type);
    const MatmulOptions options{.transpose_b = true, .bias = bias};
    kernels().matmul(a, b, out, options);
    auto want = naive(a, b, options);
    const auto added = values_of(bias);
    for (size_t i = 0; i < want.size(); ++i) want[i] += added[i % 1050];
    expect_close(out, want, tolerance(type, 500), name(type));
  }
}

TEST(Matmul, BatchesBroadcastAndMayBeStridedViews) {
  const Tensor a = random_tensor({2, 3, 5, 4}, 1), b = random_tensor({3, 4, 6}, 2), shared = random_tensor({4, 6}, 3);
  Tensor out = Tensor::empty({2, 3, 5, 6}, DType::f64), flat = Tensor::empty({2, 3, 5, 6}, DType::f64),
         permuted = Tensor::empty({2, 3, 5, 6}, DType::f64);
  kernels().matmul(a, b, out);
  kernels().matmul(a, shared, flat);
  // [2, 5, 3, 4] viewed as [2, 3, 5, 4]: heads lie between rows.
  Tensor interleaved = Tensor::empty({2, 5, 3, 4}, DType::f64);
  backend({}).elementwise->copy(a.view_transpose(1, 2), interleaved);
  kernels().matmul(interleaved.view_transpose(1, 2), b, permuted);
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 3; ++j) {
      const auto matrix = [&](const Tensor& t) {
        return t.view_slice(0, i, i + 1).view_slice(1, j, j + 1).view_reshape({t.size(2), t.size(3)});
      };
      const auto want = naive(matrix(a), b.view_slice(0, j, j + 1).view_reshape({4, 6}), {});
      expect_close(matrix(out), want, 1e-14, "batched");
      expect_close(matrix(permuted), want, 1e-14, "strided");
      expect_close(matrix(flat), naive(matrix(a), shared, {}), 1e-14, "one b for all");
    }
}

TEST(Matmul, WritesIntoRowsOfALargerTensor) {
  Tensor large = Tensor::full({6, 40}, 7, DType::f32);
  Tensor part = large.view_slice(1, 3, 36);
  const Tensor a = random_tensor({6, 9}, 1, -1, 1, DType::f32), b = random_tensor({9, 33}, 2, -1, 1, DType::f32);
  kernels().matmul(a, b, part);
  expect_close(part, naive(a, b, {}), 1e-5, "slice");
  for (int64_t i = 0; i < 6; ++i)
    for (const int64_t j : {0, 1, 2, 36, 37, 38, 39}) EXPECT_EQ(large.data<float>()[i * 40 + j], 7.0f);
}

TEST(Matmul, EmptyExtents) {
  const Tensor none = Tensor::empty({3, 0}), wide = Tensor::empty({0, 4});
  Tensor out = Tensor::full({3, 4}, 5);
  kernels().matmul(none, wide, out, {.accumulate = true});
  EXPECT_EQ(values_of(out), std::vector<double>(12, 5));
  kernels().matmul(none, wide, out, {.bias = Tensor::full({4}, 2)});
  EXPECT_EQ(values_of(out), std::vector<double>(12, 2));
  kernels().matmul(none, wide, out);
  EXPECT_EQ(values_of(out), std::vector<double>(12, 0));
  Tensor nothing = Tensor::empty({0, 4});
  kernels().matmul(Tensor::empty({0, 2}), Tensor::empty({2, 4}), nothing);
}

// An element's bits depend on its row of a, its column of b and k alone.
TEST(Matmul, BitsDependNeitherOnThreadsNorOnTheOtherRows) {
  const Tensor a = random_tensor({150, 700}, 1, -1, 1, DType::f32), b = random_tensor({90, 700}, 2, -1, 1, DType::f32);
  Tensor reference = Tensor::empty({150, 90});
  kernels().matmul(a, b, reference, {.transpose_b = true});
  const auto want = values_of(reference);
  for (const int threads : {2, 3, 5}) {
    const auto context = RankContext::make(0, threads);
    const RankContextScope scope(context);
    Tensor out = Tensor::empty({150, 90});
    kernels().matmul(a, b, out, {.transpose_b = true});
    EXPECT_EQ(values_of(out), want) << threads << " threads";
    Tensor transposed = Tensor::empty({90, 150});
    kernels().matmul(b, a, transposed, {.transpose_b = true});
    EXPECT_EQ(values_of(transposed.view_transpose(0, 1)), want) << threads << " threads, roles exchanged";
  }
  for (const auto& [row, rows] : {std::pair<int64_t, int64_t>{0, 1}, {7, 1}, {149, 1}, {3, 25}}) {
    Tensor out = Tensor::empty({rows, 90});
    kernels().matmul(a.view_slice(0, row, row + rows), b, out, {.transpose_b = true});
    EXPECT_EQ(values_of(out), values_of(reference.view_slice(0, row, row + rows))) << "rows from " << row;
  }
  Tensor columns = Tensor::empty({150, 5});
  kernels().matmul(a, b.view_slice(0, 40, 45), columns, {.transpose_b = true});
  EXPECT_EQ(values_of(columns), values_of(reference.view_slice(1, 40, 45)));
}

// Rows a multiple of 4096 bytes apart are packed, others are read where they lie; the right-hand matrix is packed once for many rows, or
// block by block.
TEST(Matmul, BitsDependNeitherOnWhereTheRowsLieNorOnTheOtherColumns) {
  const Tensor a = random_tensor({500, 1024}, 1, -1, 1, DType::f32), b = random_tensor({1024, 2100}, 2, -1, 1, DType::f32);
  Tensor wide = Tensor::zeros({500, 1037}), across = Tensor::zeros({1024, 500}), out = Tensor::empty({500, 2100});
  Tensor apart = wide.view_slice(1, 13, 1037);
  backend({}).elementwise->copy(a, apart);
  backend({}).elementwise->copy(a.view_transpose(0, 1), across);
  kernels().matmul(a, b, out);
  const auto want = values_of(out);
  Tensor columns = Tensor::empty({500, 70}), rows = Tensor::empty({20, 2100});
  kernels().matmul(apart, b.view_slice(1, 2030, 2100), columns);
  EXPECT_EQ(values_of(columns), values_of(out.view_slice(1, 2030, 2100)));
  kernels().matmul(apart.view_slice(0, 470, 490), b, rows);
  EXPECT_EQ(values_of(rows), values_of(out.view_slice(0, 470, 490)));
  kernels().matmul(apart, b, out);
  EXPECT_EQ(values_of(out), want);
  kernels().matmul(across, b, out, {.transpose_a = true});
  EXPECT_EQ(values_of(out), want);
}

TEST(Matmul, ErrorsNameBothShapes) {
  Tensor out = Tensor::empty({2, 2});
  try {
    kernels().matmul(Tensor::empty({2, 3}), Tensor::empty({4, 2}), out);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("f32[2, 3]"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("f32[4, 2]"), std::string::npos) << e.what();
  }
  EXPECT_THROW(kernels().matmul(Tensor::empty({2, 3}), Tensor::empty({3, 5}), out), Error);
  EXPECT_THROW(kernels().matmul(Tensor::empty({2, 3}, DType::i32), Tensor::empty({3, 2}, DType::i32), out), Error);
}

TEST(Matmul, ScratchIsWorkspaceAndGoneAfterwards) {
  auto& memory = RankContext::current()->memory();
  const auto before = memory.current();
  Tensor out = Tensor::empty({64, 64});
  kernels().matmul(random_tensor({64, 64}, 1, -1, 1, DType::f32), random_tensor({64, 64}, 2, -1, 1, DType::f32), out);
  out = Tensor();
  EXPECT_EQ(memory.current(), before);
}

}  // namespace
}  // namespace rz
