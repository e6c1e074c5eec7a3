// Fixed-point sums on the CPU: branch-free integer loops that the compiler vectorizes, one memory pass each.
#include "runtime/kernels/fixed_point.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/convert.h"

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

// units = x on the grid; returns the largest magnitude. Not inlined: g++ then vectorizes it for every caller.
[[gnu::noinline]] int32_t to_units(const float* __restrict x, int64_t* __restrict units, int64_t n, int grid) {
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
    units[i] = (rounded ^ sign) - sign;
  }
  return largest;
}

// Unsigned: sums of elements that do not fit wrap, harmlessly, for the step is computed again.
void add_units(const int64_t* __restrict units, int64_t* __restrict sums, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] = static_cast<int64_t>(static_cast<uint64_t>(sums[i]) + static_cast<uint64_t>(units[i]));
}

// Both in blocks that stay in cache between the loops, which g++ vectorizes apart but not together.
template <class T>
int32_t add_run(const T* x, int64_t* sums, int64_t n, int grid, bool accumulate) {
  constexpr int64_t kBlock = 512;
  alignas(64) int64_t units[kBlock];
  alignas(64) float wide[kBlock];
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t length = std::min(kBlock, n - i);
    const float* from = wide;
    if constexpr (std::is_same_v<T, float>) from = x + i;
    else load_run(x + i, 1, wide, length);
    largest = std::max(largest, to_units(from, accumulate ? units : sums + i, length, grid));
    if (accumulate) add_units(units, sums + i, length);
  }
  return largest;
}

void to_floats(const int64_t* __restrict from, float* __restrict to, int64_t n, double unit) {
  // Rounded to 24 bits before scaling: in double it would be rounded twice.
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(static_cast<double>(static_cast<float>(from[i])) * unit);
}

// Each square is split on two grids, 40 bits each, by adding a number whose unit in the last place is the grid: the difference of
// the bits is then the integer. All products are exact, so fused multiply-adds change nothing.
Int128 squares_of_block(const float* x, int64_t n, double scale) {
  constexpr double kToInteger = 0x1.8p52;
  constexpr double kLowUnits = 0x1p40;
  constexpr auto kZero = std::bit_cast<int64_t>(kToInteger);
  int64_t high = 0;
  int64_t low = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double square = static_cast<double>(x[i]) * static_cast<double>(x[i]) * scale;
    const double upper = square + kToInteger;
    const double lower = (square - (upper - kToInteger)) * kLowUnits + kToInteger;
    high += std::bit_cast<int64_t>(upper) - kZero;
    low += std::bit_cast<int64_t>(lower) - kZero;
  }
  return static_cast<Int128>(high) * (Int128{1} << 40) + low;
}

class CpuFixedPointKernels final : public FixedPointKernels {
 public:
  int32_t add_fixed(const Tensor& x, int grid, Tensor& sums, bool accumulate) override {
    check_flat("add_fixed", x, sums);
    int64_t* to = sums.data<int64_t>();
    std::atomic<int32_t> largest{0};
    dispatch_floating(x.dtype(), "add_fixed", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (std::is_same_v<T, double>) {
        RZ_CHECK(false, "add_fixed takes f32, bf16 or f16, not {}", x.str());
      } else {
        const T* from = x.data<T>();
        parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
          raise(largest, add_run(from + begin, to + begin, end - begin, grid, accumulate));
        });
      }
    });
    return largest.load();
  }

  void add_sums(const Tensor& more, Tensor& sums) override {
    check_flat("add_sums", more, sums);
    const int64_t* from = more.data<int64_t>();
    int64_t* to = sums.data<int64_t>();
    parallel_for(sums.numel(), kGrain, [&](int64_t begin, int64_t end) { add_units(from + begin, to + begin, end - begin); });
  }

  void to_float(const Tensor& sums, int grid, Tensor& out) override {
    check_flat("to_float", sums, out);
    const int64_t* from = sums.data<int64_t>();
    float* to = out.data<float>();
    const double unit = std::ldexp(1.0, grid);
    parallel_for(out.numel(), kGrain, [&](int64_t begin, int64_t end) { to_floats(from + begin, to + begin, end - begin, unit); });
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
    constexpr int64_t kBlock = 8192;  // 2^13 x 2^40 units of either grid are far below 2^63
    RZ_CHECK(x.is_contiguous(), "sum_of_squares needs a contiguous tensor, got {}", x.str());
    if (dry_run()) return 0;
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
