// The loops under the reduction family: sums and extrema over contiguous memory in a fixed order.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/reduction.h"

namespace rz::cpu {

// out[A, B] (+)= op over r of x[A, R, B], contiguous. A block of R is reduced by one thread; blocks are combined in order.
void reduce_blocks(ReduceOp op, const Tensor& x, int64_t a, int64_t r, int64_t b, Tensor& out, bool accumulate);

// Sums of n contiguous elements in kSumLanes interleaved double lanes, then the lanes in order.
inline constexpr int64_t kSumLanes = 16;

template <class T>
double sum_row(const T* x, int64_t n) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
    for (int64_t l = 0; l < kSumLanes; ++l) lanes[l] += static_cast<double>(static_cast<compute_t<T>>(x[i + l]));
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  for (; i < n; ++i) sum += static_cast<double>(static_cast<compute_t<T>>(x[i]));
  return sum;
}

template <class T>
double sum_squared_deviations(const T* x, int64_t n, double mean) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
    for (int64_t l = 0; l < kSumLanes; ++l) {
      const double d = static_cast<double>(static_cast<compute_t<T>>(x[i + l])) - mean;
      lanes[l] += d * d;
    }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  for (; i < n; ++i) {
    const double d = static_cast<double>(static_cast<compute_t<T>>(x[i])) - mean;
    sum += d * d;
  }
  return sum;
}

}  // namespace rz::cpu
