// What every way of multiplying does at the ends of a strip of C's columns.
#pragma once

#include <algorithm>

#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

// Columns [first, first + columns) of a product. Sums are taken in C where that has their type; 16-bit results in `sums` (m x columns), to
// be rounded once. `bias` has room for `columns` rounded up to `panel`.
template <class T>
class GemmStrip {
 public:
  using C = compute_t<T>;
  static constexpr bool kDirect = std::is_same_v<T, C>;

  GemmStrip(const Gemm<T>& g, int64_t first, int64_t columns, int64_t panel, C* bias, C* sums) : g_(g), first_(first), columns_(columns) {
    if constexpr (kDirect)
      data_ = g.c + first, stride_ = g.c_row_stride;
    else
      data_ = sums, stride_ = columns;
    if (g.bias == nullptr || g.accumulate) return;
    load_run(g.bias + first, 1, bias, columns);
    std::fill(bias + columns, bias + round_up(columns, panel), C(0));
    bias_ = bias;
  }

  C* at(int64_t row, int64_t column) const { return data_ + row * stride_ + column; }
  int64_t stride() const { return stride_; }
  // Whether the block of k that begins at `from_k` is added to what is there.
  bool adds(int64_t from_k) const { return from_k > 0 || (kDirect && g_.accumulate); }
  // What the sums of that block begin with at this column and the next ones, readable for a whole panel; null: zeros.
  const C* bias(int64_t column, int64_t from_k) const { return bias_ == nullptr || from_k > 0 ? nullptr : bias_ + column; }

  void finish() const {
    if constexpr (!kDirect)
      for (int64_t i = 0; i < g_.m; ++i) store_run(at(i, 0), g_.c + i * g_.c_row_stride + first_, 1, columns_, g_.accumulate);
  }

 private:
  const Gemm<T>& g_;
  int64_t first_, columns_;
  C* data_;
  int64_t stride_;
  const C* bias_ = nullptr;
};

}  // namespace rz::cpu
