// Matrix products, by multiply-adds and in tile registers, against a naive triple loop in double, over shapes at the edges of tiles and
// blocks, layouts and types; and what their bits may depend on.
#include "runtime/kernels/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/core/random.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/gemm_tiles.h"
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

constexpr const char* kNoTiles = "not run: this CPU, system or build has no tile registers";

std::shared_ptr<RankContext> context_with(bool tiles, int threads = 1) {
  auto context = RankContext::make(0, threads);
  context->set_tiles(tiles);
  return context;
}

// Both ways of a product; the parameter is whether in tiles.
class Matmul : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !cpu::tiles_available()) GTEST_SKIP() << kNoTiles;
  }
  std::shared_ptr<RankContext> context(int threads = 1) { return context_with(GetParam(), threads); }
  const RankContextScope scope_{context_with(GetParam())};
};
INSTANTIATE_TEST_SUITE_P(Ways, Matmul, testing::Bool(), [](const auto& info) { return info.param ? "tiles" : "multiply_adds"; });

TEST_P(Matmul, EveryShapeLayoutAndTypeMatchesTheNaiveProduct) {
  const int64_t sizes[][3] = {{1, 1, 1},      {1, 33, 7},    {2, 3, 5},      {12, 32, 16},   {13, 33, 17},  {11, 31, 385},
                              {5, 70, 800},   {64, 64, 64},  {16, 48, 32},   {31, 17, 33},   {33, 31, 47},  {200, 50, 40},
                              {30, 1100, 20}, {490, 40, 30}, {500, 140, 50}, {490, 270, 50}, {50, 500, 400}};
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

TEST_P(Matmul, BiasIsAddedToEveryRow) {
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

TEST_P(Matmul, BatchesBroadcastAndMayBeStridedViews) {
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

TEST_P(Matmul, WritesIntoRowsOfALargerTensor) {
  Tensor large = Tensor::full({6, 40}, 7, DType::f32);
  Tensor part = large.view_slice(1, 3, 36);
  const Tensor a = random_tensor({6, 9}, 1, -1, 1, DType::f32), b = random_tensor({9, 33}, 2, -1, 1, DType::f32);
  kernels().matmul(a, b, part);
  expect_close(part, naive(a, b, {}), 1e-5, "slice");
  for (int64_t i = 0; i < 6; ++i)
    for (const int64_t j : {0, 1, 2, 36, 37, 38, 39}) EXPECT_EQ(large.data<float>()[i * 40 + j], 7.0f);
}

TEST_P(Matmul, EmptyExtents) {
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
TEST_P(Matmul, BitsDependNeitherOnThreadsNorOnTheOtherRows) {
  const Tensor a = random_tensor({150, 700}, 1, -1, 1, DType::f32), b = random_tensor({90, 700}, 2, -1, 1, DType::f32);
  Tensor reference = Tensor::empty({150, 90}), wide_reference = Tensor::empty({90, 150});
  kernels().matmul(a, b, reference, {.transpose_b = true});
  kernels().matmul(b, a, wide_reference, {.transpose_b = true});
  const auto want = values_of(reference), wide_want = values_of(wide_reference);
  for (const int threads : {2, 3, 5}) {
    const RankContextScope scope(context(threads));
    Tensor out = Tensor::empty({150, 90});
    kernels().matmul(a, b, out, {.transpose_b = true});
    EXPECT_EQ(values_of(out), want) << threads << " threads";
    Tensor wide = Tensor::empty({90, 150});
    kernels().matmul(b, a, wide, {.transpose_b = true});
    EXPECT_EQ(values_of(wide), wide_want) << threads << " threads, more columns than rows";
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

// Threads share a product in parts, which may be blocked unlike the whole: the scratch for the largest part is enough for all, and none
// writes beyond its own.
TEST_P(Matmul, ScratchIsEnoughForEveryPart) {
  const auto scratch_bytes = [&](int64_t m, int64_t n, int64_t k) {
    return GetParam() ? cpu::gemm_tiles_scratch_bytes<float>(m, n, k) : cpu::gemm_scratch_bytes<float>(m, n, k);
  };
  constexpr int64_t k = 70;
  const std::vector<int64_t> sizes = {1, 30, 96, 128, 129, 200, 384, 385, 416, 480, 492, 800, 2048, 2100};
  const Tensor a = random_tensor({k, 2100}, 1, -1, 1, DType::f32), b = random_tensor({k, 2100}, 2, -1, 1, DType::f32);
  Tensor out = Tensor::empty({2100, 2100});
  for (size_t i = 0; i < sizes.size(); ++i)
    for (size_t j = 0; j < sizes.size(); ++j) {
      const int64_t m = sizes[i], n = sizes[j];
      const size_t bytes = scratch_bytes(m, n, k);
      EXPECT_GE(bytes, scratch_bytes(sizes[i == 0 ? 0 : i - 1], n, k)) << m << " x " << n;
      EXPECT_GE(bytes, scratch_bytes(m, sizes[j == 0 ? 0 : j - 1], k)) << m << " x " << n;
      constexpr int64_t kGuard = 4096;
      const Tensor scratch = Tensor::full({static_cast<int64_t>(bytes) + kGuard}, 77, DType::u8);
      cpu::Gemm<float> g{.m = m,
                         .n = n,
                         .k = k,
                         .a = {a.data<float>(), 1, 2100},  // packed, as rows that do not follow each other are
                         .b = {b.data<float>(), 2100, 1}};
      g.c = out.data<float>();
      g.c_row_stride = 2100;
      if (GetParam())
        cpu::gemm_tiles(g, scratch.raw_data());
      else
        cpu::gemm(g, scratch.raw_data());
      const auto* guard = reinterpret_cast<const uint8_t*>(scratch.raw_data()) + bytes;
      EXPECT_TRUE(std::all_of(guard, guard + kGuard, [](uint8_t byte) { return byte == 77; })) << m << " x " << n;
    }
}

// Rows a multiple of 4096 bytes apart are packed, others are read where they lie; the right-hand matrix is packed once for many rows, or
// block by block.
TEST_P(Matmul, BitsDependNeitherOnWhereTheRowsLieNorOnTheOtherColumns) {
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

TEST_P(Matmul, ErrorsNameBothShapes) {
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

TEST_P(Matmul, ScratchIsWorkspaceAndGoneAfterwards) {
  auto& memory = RankContext::current()->memory();
  const auto before = memory.current();
  Tensor out = Tensor::empty({64, 64});
  kernels().matmul(random_tensor({64, 64}, 1, -1, 1, DType::f32), random_tensor({64, 64}, 2, -1, 1, DType::f32), out);
  out = Tensor();
  EXPECT_EQ(memory.current(), before);
}

class Tiles : public testing::Test {
 protected:
  void SetUp() override {
    if (!cpu::tiles_available()) GTEST_SKIP() << kNoTiles;
  }
};

// Errors as parts of the sum of the terms' magnitudes, in units of half a float32's last place, over all elements.
struct Errors {
  double root_mean_square = 0, largest = 0;
};

Errors errors_of(const Tensor& a, const Tensor& b, bool tiles) {
  const RankContextScope scope(context_with(tiles));
  const int64_t m = a.size(0), n = b.size(1), k = a.size(1);
  Tensor out = Tensor::empty({m, n});
  kernels().matmul(a, b, out);
  const auto x = values_of(a), y = values_of(b), got = values_of(out), want = naive(a, b, {});
  Errors errors;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double magnitude = 0;
      for (int64_t p = 0; p < k; ++p) magnitude += std::abs(x[static_cast<size_t>(i * k + p)] * y[static_cast<size_t>(p * n + j)]);
      const double error = std::abs(got[static_cast<size_t>(i * n + j)] - want[static_cast<size_t>(i * n + j)]) / magnitude * 0x1p24;
      errors.root_mean_square += error * error / static_cast<double>(m * n);
      errors.largest = std::max(errors.largest, error);
    }
  errors.root_mean_square = std::sqrt(errors.root_mean_square);
  return errors;
}

// Three bfloat16 pieces are a float32: products in tiles are as exact as multiply-adds, for numbers of one size and of very different ones.
TEST_F(Tiles, AreAsExactAsMultiplyAdds) {
  for (const int64_t k : {32, 100, 384, 1000, 3000})
    for (const int exponents : {0, 40}) {
      Tensor a = random_tensor({40, k}, 1, -1, 1, DType::f32), b = random_tensor({k, 50}, 2, -1, 1, DType::f32);
      const Random random(3, "exponents");
      for (int64_t i = 0; i < a.numel(); ++i)
        a.data<float>()[i] = std::ldexp(a.data<float>()[i], static_cast<int>(exponents * (random.uniform(static_cast<uint64_t>(i)) - 0.5)));
      const Errors tiles = errors_of(a, b, true), adds = errors_of(a, b, false);
      EXPECT_LT(tiles.root_mean_square, adds.root_mean_square) << "k = " << k << ", exponents over " << exponents;
      EXPECT_LT(tiles.largest, 1.6 * adds.largest) << "k = " << k << ", exponents over " << exponents;
    }
}

// Whole numbers whose sums float32 holds come out exactly, whichever piece they lie in.
TEST_F(Tiles, WholeNumbersAreExact) {
  const int64_t k = 64;
  Tensor a = Tensor::zeros({3, k}), b = Tensor::zeros({k, 4}), out = Tensor::empty({3, 4});
  for (int64_t i = 0; i < 3; ++i) a.data<float>()[i * k + 7 * i] = 16777213.0f;  // 24 significant bits
  for (int64_t p = 0; p < k; ++p)
    for (int64_t j = 0; j < 4; ++j) b.data<float>()[p * 4 + j] = static_cast<float>(j % 2 == 0 ? 1 << j : -1);
  kernels().matmul(a, b, out);
  EXPECT_EQ(values_of(out), naive(a, b, {}));
}

// Infinities, NaN and what bfloat16 would round to infinity: their rows and columns are what multiply-adds give, all others keep their
// bits.
TEST_F(Tiles, NumbersThatNoPieceHolds) {
  const float infinity = std::numeric_limits<float>::infinity(), largest = std::numeric_limits<float>::max();
  for (const float special : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), largest, -largest})
    for (const bool in_a : {true, false})
      for (const int64_t k : {40, 500}) {
        Tensor a = random_tensor({70, k}, 1, 0.25, 1, DType::f32), b = random_tensor({k, 45}, 2, 0.25, 0.5, DType::f32);
        Tensor clean = Tensor::empty({70, 45}), out = Tensor::empty({70, 45}), adds = Tensor::empty({70, 45});
        kernels().matmul(a, b, clean);
        const int64_t row = 35, column = 17, p = k - 3;
        if (in_a)
          a.data<float>()[row * k + p] = special;
        else
          b.data<float>()[p * 45 + column] = special;
        kernels().matmul(a, b, out);
        {
          const RankContextScope scope(context_with(false));
          kernels().matmul(a, b, adds);
        }
        for (int64_t i = 0; i < 70; ++i)
          for (int64_t j = 0; j < 45; ++j) {
            const float got = out.data<float>()[i * 45 + j], by_adds = adds.data<float>()[i * 45 + j];
            const std::string what = fmt::format("{} in {}, k = {}: element {}, {}", special, in_a ? "a" : "b", k, i, j);
            if (in_a ? i != row : j != column)
              EXPECT_EQ(got, clean.data<float>()[i * 45 + j]) << what;
            else if (std::isfinite(by_adds))
              EXPECT_NEAR(got / by_adds, 1, 1e-6) << what;
            else
              EXPECT_TRUE(std::isnan(by_adds) ? std::isnan(got) : got == by_adds) << what << ": " << got << " and " << by_adds;
          }
        if (HasFailure()) return;
      }
}

}  // namespace
}  // namespace rz
