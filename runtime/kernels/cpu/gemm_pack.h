// Packing for the micro-kernels: strips of a matrix laid out k-major.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_micro.h"

namespace rz::cpu {

// `Width` rows that are contiguous along p, in squares of vectors. Stores whole vectors in rising order: what runs over a column of
// the panel is overwritten by the next one, what runs over the end of the panel lies in the next panel or in the scratch's slack.
template <int Width, class T, class C>
void pack_transposed(const T* from, int64_t i_stride, int64_t k, C* to) {
  constexpr int lanes = kLanes<C>;
  constexpr int squares = (Width + lanes - 1) / lanes;
  int64_t p = 0;
  for (; p + lanes <= k; p += lanes) {
    Lanes<C> rows[squares][lanes] = {};
#pragma GCC unroll 2
    for (int s = 0; s < squares; ++s) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (s * lanes + i < Width) rows[s][i] = load_lanes(from + (s * lanes + i) * i_stride + p);
      transpose<C>(rows[s]);
    }
#pragma GCC unroll 16
    for (int q = 0; q < lanes; ++q)
#pragma GCC unroll 2
      for (int s = 0; s < squares; ++s) store_lanes<C>(to + (p + q) * Width + s * lanes, rows[s][q]);
  }
  for (; p < k; ++p)
    for (int i = 0; i < Width; ++i) to[p * Width + i] = static_cast<C>(from[i * i_stride + p]);
}

// One panel with any strides: to[p * Width + i] = from(i, p) for i < width, p < k; zeros for width <= i < Width.
template <int Width, class T, class C>
void pack_strided(const T* from, int64_t i_stride, int64_t p_stride, int64_t width, int64_t k, C* __restrict to) {
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t i = 0; i < width; ++i) to[p * Width + i] = static_cast<C>(from[i * i_stride + p * p_stride]);
    for (int64_t i = width; i < Width; ++i) to[p * Width + i] = C(0);
  }
}

// One column of a panel, contiguous in memory. Whole vectors where there is room for them behind it: `spill` elements may be overwritten.
template <int Width, class T, class C>
[[gnu::always_inline]] inline void pack_column(const T* from, C* to, bool spill) {
  constexpr int lanes = kLanes<C>;
  constexpr int whole = Width / lanes;
#pragma GCC unroll 4
  for (int v = 0; v < whole; ++v) store_lanes<C>(to + v * lanes, load_lanes(from + v * lanes));
  if constexpr (Width % lanes != 0) {
    if (spill) {
      store_lanes<C>(to + whole * lanes, load_lanes(from + whole * lanes));
    } else {
#pragma GCC unroll 16
      for (int i = whole * lanes; i < Width; ++i) to[i] = static_cast<C>(from[i]);
    }
  }
}

// `Panels` neighbouring panels whose elements are contiguous along i. Reading them side by side uses whole cache lines and few
// pages where one step along p is a large power of two.
template <int Width, int Panels, class T, class C>
void pack_side_by_side(const T* from, int64_t p_stride, int64_t k, C* __restrict to) {
  // What a whole vector reads and writes beyond its column must exist: the next panel's first elements, and the next column.
  for (int64_t p = 0; p < k; ++p) {
    const T* __restrict row = from + p * p_stride;
#pragma GCC unroll 4
    for (int panel = 0; panel < Panels; ++panel)
      pack_column<Width>(row + panel * Width, to + (panel * k + p) * Width, panel + 1 < Panels && p + 1 < k);
  }
}

// All panels of `count` rows (of A) or columns (of B).
template <int Width, class T, class C>
void pack(const T* from, int64_t i_stride, int64_t p_stride, int64_t count, int64_t k, C* to) {
  constexpr int kTogether = 4;
  for (int64_t i = 0; i < count;) {
    const T* first = from + i * i_stride;
    C* panel = to + i * k;
    const int64_t left = count - i;
    if (i_stride == 1 && left >= kTogether * Width) {
      pack_side_by_side<Width, kTogether>(first, p_stride, k, panel);
      i += kTogether * Width;
      continue;
    }
    if (i_stride == 1 && left >= Width)
      pack_side_by_side<Width, 1>(first, p_stride, k, panel);
    else if (p_stride == 1 && left >= Width)
      pack_transposed<Width>(first, i_stride, k, panel);
    else
      pack_strided<Width>(first, i_stride, p_stride, std::min<int64_t>(Width, left), k, panel);
    i += Width;
  }
}

}  // namespace rz::cpu
