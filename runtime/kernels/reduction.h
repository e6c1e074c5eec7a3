// Reductions over dimensions, running sums, and selection of the largest.
//
// * Sums are taken in double (16-bit and float32 inputs) or in double lanes (f64), in an order that depends on the shape alone:
//   any thread count gives the same bits.
// * Inputs may be strided; outputs are contiguous. A NaN wins a maximum, a minimum and an argmax.
#pragma once

#include <span>

#include "runtime/core/tensor.h"

namespace rz {

enum class ReduceOp : uint8_t { sum, mean, max, min, prod };

class ReductionKernels {
 public:
  virtual ~ReductionKernels() = default;

  // out (+)= op of x over `dims` (distinct, in [0, rank)). `out` holds the kept extents in order, with or without extents of 1 for
  // the reduced ones. A max or min over nothing is an error.
  virtual void reduce(ReduceOp op, const Tensor& x, std::span<const int> dims, Tensor& out, bool accumulate = false) = 0;
  // The reverse of broadcasting: out (+)= x summed over the dimensions that broadcasting `out` to x's shape would repeat.
  virtual void sum_to_shape(const Tensor& x, Tensor& out, bool accumulate = false) = 0;
  // Mean squared deviation from the mean over `dims`, divided by (count - correction); `mean` (same shape as out) may be undefined.
  virtual void variance(const Tensor& x, std::span<const int> dims, double correction, Tensor& out, Tensor& mean) = 0;
  // Index (i64) of the largest element along `dim`, the first of equals.
  virtual void arg_max(const Tensor& x, int dim, Tensor& out) = 0;
  // out (+)= running sum along `dim`, from the end when `reverse`.
  virtual void cumulative_sum(const Tensor& x, int dim, bool reverse, Tensor& out, bool accumulate = false) = 0;
  // The k largest along the last dimension, largest first, the first of equals first; with k = extent a stable sort.
  virtual void top_k(const Tensor& x, int64_t k, Tensor& values, Tensor& indices) = 0;
};

}  // namespace rz
