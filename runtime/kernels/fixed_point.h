// Order-independent sums: floating-point numbers as 64-bit integers on a common grid, and squares as 128-bit ones. Integers can be
// added in any order by anybody; only the step onto the grid and the step back round.
#pragma once

#include "runtime/core/tensor.h"

namespace rz {

__extension__ typedef __int128 Int128;

// Squares of numbers up to 2^bound are counted in units of 2^(2 bound - kSquareBits).
inline constexpr int kSquareBits = 80;

// The exponent e of a magnitude given as the bits of a float32: the smallest with |x| < 2^e (-126 for subnormal numbers).
// 128 + 1 for infinity and NaN.
constexpr int exponent_of_bits(int32_t magnitude) { return (magnitude >> 23) - 126; }

class FixedPointKernels {
 public:
  virtual ~FixedPointKernels() = default;

  // sums (i64) (+)= x (f32, bf16 or f16) / 2^grid, each element rounded to the nearest integer, halves away from zero. Returns the largest
  // magnitude |x[i]| as the bits of a float32: as integers NaN > infinity > finite numbers. Elements of 2^(grid + 62) or more
  // do not fit: their sums mean nothing, which the caller sees by the magnitude. Both flat and contiguous.
  virtual int32_t add_fixed(const Tensor& x, int grid, Tensor& sums, bool accumulate) = 0;
  // sums += more; both i64, flat, contiguous.
  virtual void add_sums(const Tensor& more, Tensor& sums) = 0;
  // out (f32) = sums x 2^grid, rounded once, to nearest.
  virtual void to_float(const Tensor& sums, int grid, Tensor& out) = 0;
  // The largest |x[i]| as the bits of a float32, 0 for none.
  virtual int32_t largest_magnitude(const Tensor& x) = 0;
  // Sum of x[i]^2 in units of 2^(2 bound - kSquareBits), each square rounded to one; requires |x[i]| <= 2^bound.
  virtual Int128 sum_of_squares(const Tensor& x, int bound) = 0;
};

}  // namespace rz
