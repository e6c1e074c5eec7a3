// Fixed-point sums on the CPU: branch-free integer loops that the compiler vectorizes, one memory pass each.
#include "runtime/kernels/fixed_point.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrain = 16384;
constexpr int kFractionBits = 23;
constexpr int kUnitExponent = 150;  // a float32 is (24-bit integer) x 2^(exponent field - 150)
constexpr int kMostLeft = 62 - 24;  // an element below 2^62 units is shifted no further

void check_flat(const char* what, const Tensor& a, const Tensor& b) {
  RZ_CHECK(a.numel() == b.numel() && a.is_contiguous() && b.is_contiguous(), "{}: {} does not match {}", what, a.str(), b.str());
}

void raise(std::atomic<int32_t>& largest, int32_t candidate) {
  int32_t seen = largest.load();
  while (seen < candidate && !largest.compare_exchange_weak(seen, candidate)) {
  }
}

template <bool accumulate>
int32_t add_run(const float* __restrict x, int64_t* __restrict sums, int64_t n, int grid) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<int32_t>(x[i]);
    const int32_t magnitude = bits & 0x7FFFFFFF;
    largest = std::max(largest, magnitude);
    const int32_t field = magnitude >> kFractionBits;
    const int32_t fraction = (magnitude & 0x7FFFFF) | (field > 0 ? 0x800000 : 0);
    const int32_t shift = std::max(field, 1) - kUnitExponent - grid;
    // Shifted with one bit more than needed, whose value decides the rounding.
    const auto wide = static_cast<uint64_t>(static_cast<uint32_t>(fraction)) << 1;
    const auto left = static_cast<uint64_t>(std::min(std::max(shift, 0), kMostLeft));
    const auto right = static_cast<uint64_t>(std::min(std::max(-shift, 0), 63));
    const auto rounded = static_cast<int64_t>((((wide << left) >> right) + 1) >> 1);
    const auto sign = static_cast<int64_t>(bits >> 31);
    const int64_t value = (rounded ^ sign) - sign;
    // Elements that do not fit may overflow here, harmlessly: the step is computed again.
    sums[i] = accumulate ? static_cast<int64_t>(static_cast<uint64_t>(sums[i]) + static_cast<uint64_t>(value)) : value;
  }
  return largest;
}

// Each square is split on two grids, 40 bits each, by adding and subtracting a number whose unit in the last place is the grid:
// sums of a block are then exact in double.
Int128 squares_of_block(const float* x, int64_t n, double scale) {
  constexpr double kToInteger = 0x1.8p52;
  constexpr double kLowUnits = 0x1p40;
  constexpr int kLanes = 8;
  double high[kLanes] = {};
  double low[kLanes] = {};
  const auto add = [&](int lane, float v) {
    const double square = static_cast<double>(v) * static_cast<double>(v) * scale;  // exact: 48 bits, times a power of two
    const double upper = (square + kToInteger) - kToInteger;
    const double rest = (square - upper) * kLowUnits;
    high[lane] += upper;
    low[lane] += (rest + kToInteger) - kToInteger;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) add(l, x[i + l]);
  for (; i < n; ++i) add(0, x[i]);
  double upper = 0;
  double lower = 0;
  for (int l = 0; l < kLanes; ++l) upper += high[l], lower += low[l];
  return static_cast<Int128>(static_cast<int64_t>(upper)) * (Int128{1} << 40) + static_cast<int64_t>(lower);
}

class CpuFixedPointKernels final : public FixedPointKernels {
 public:
  int32_t add_fixed(const Tensor& x, int grid, Tensor& sums, bool accumulate) override {
    check_flat("add_fixed", x, sums);
    const float* from = x.data<float>();
    int64_t* to = sums.data<int64_t>();
    std::atomic<int32_t> largest{0};
    parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      const int32_t own = accumulate ? add_run<true>(from + begin, to + begin, end - begin, grid) : add_run<false>(from + begin, to + begin, end - begin, grid);
      raise(largest, own);
    });
    return largest.load();
  }

  void add_sums(const Tensor& more, Tensor& sums) override {
    check_flat("add_sums", more, sums);
    const int64_t* __restrict from = more.data<int64_t>();
    int64_t* __restrict to = sums.data<int64_t>();
    parallel_for(sums.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = static_cast<int64_t>(static_cast<uint64_t>(to[i]) + static_cast<uint64_t>(from[i]));
    });
  }

  void to_float(const Tensor& sums, int grid, Tensor& out) override {
    check_flat("to_float", sums, out);
    const int64_t* __restrict from = sums.data<int64_t>();
    float* __restrict to = out.data<float>();
    const double unit = std::ldexp(1.0, grid);
    parallel_for(out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      // Rounded to 24 bits before scaling: in double it would be rounded twice.
      for (int64_t i = begin; i < end; ++i) to[i] = static_cast<float>(static_cast<double>(static_cast<float>(from[i])) * unit);
    });
  }

  int32_t largest_magnitude(const Tensor& x) override {
    RZ_CHECK(x.is_contiguous(), "largest_magnitude needs a contiguous tensor, got {}", x.str());
    const float* from = x.data<float>();
    std::atomic<int32_t> largest{0};
    parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      int32_t own = 0;
      for (int64_t i = begin; i < end; ++i) own = std::max(own, std::bit_cast<int32_t>(from[i]) & 0x7FFFFFFF);
      raise(largest, own);
    });
    return largest.load();
  }

  Int128 sum_of_squares(const Tensor& x, int bound) override {
    // Of a block: below 2^12 x 2^40 = 2^52 units of either grid.
    constexpr int64_t kBlock = 4096;
    RZ_CHECK(x.is_contiguous(), "sum_of_squares needs a contiguous tensor, got {}", x.str());
    const float* from = x.data<float>();
    const double scale = std::ldexp(1.0, kSquareBits / 2 - 2 * bound);
    const int64_t n = x.numel();
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    std::vector<Int128> partial(static_cast<size_t>(blocks));
    parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        partial[static_cast<size_t>(b)] = squares_of_block(from + b * kBlock, std::min(kBlock, n - b * kBlock), scale);
    });
    Int128 sum = 0;
    for (const Int128 block : partial) sum += block;
    return sum;
  }
};

}  // namespace

FixedPointKernels& fixed_point_kernels() {
  static CpuFixedPointKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
