// One pass over a row of scores: its maximum and the sum of exponentials relative to it. Milakov and Gimelshein, "Online normalizer
// calculation for softmax", 2018: a block that raises the maximum rescales the sum so far.
#pragma once

#include <algorithm>

#include "runtime/kernels/cpu/lanes.h"

namespace rz::cpu {

// Elements handled together: their exponentials stay in the first-level cache.
inline constexpr int64_t kSoftmaxBlock = 1024;

template <class C>
struct RowStats {
  C max;  // 0 instead of -inf, so that x - max is never inf - inf
  C sum;  // of exp(x - max); 0 for a row that is -inf throughout

  C inverse_sum() const { return sum == C(0) ? C(0) : C(1) / sum; }
  // -inf for a row that is -inf throughout
  C log_sum_exp() const { return max + math::log(sum); }
};

// `scratch` holds kSoftmaxBlock elements; after a row of one block it holds exp(x - max).
template <class T>
RowStats<compute_t<T>> row_stats(const T* x, int64_t n, compute_t<T>* __restrict scratch) {
  using C = compute_t<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  C max = kLowest;
  C sum = 0;
  for (int64_t begin = 0; begin < n; begin += kSoftmaxBlock) {
    const int64_t count = std::min(kSoftmaxBlock, n - begin);
    const T* block = x + begin;
    const C block_max = row_max(block, count);
    if (block_max > max) {
      if (max != kLowest) sum *= exp_flushed(max - block_max);
      max = block_max;
    }
    const C origin = max == kLowest ? C(0) : max;
    for (int64_t i = 0; i < count; ++i) scratch[i] = exp_flushed(static_cast<C>(block[i]) - origin);
    sum += row_sum(scratch, count);
  }
  return {max == kLowest ? C(0) : max, sum};
}

}  // namespace rz::cpu
