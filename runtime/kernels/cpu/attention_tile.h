// Small matrix products on tiles that stay in cache: the arithmetic of attention.
//
// Vocabulary. A *panel* is a strip of kPanel<C> columns of the right-hand matrix, stored row after row; the micro-kernel keeps a
// kBlockRows x panel block of the result in registers. Columns are padded to whole vectors, panels to whole panels.
// The sum of every element runs over k in blocks of ascending k: results do not depend on how rows are cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/kernels/cpu/gemm_micro.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

#if defined(__AVX512F__)
inline constexpr int kPanelVectors = 4;  // 6 x 4 sums, 4 right-hand vectors and a broadcast fill 29 of 32 registers
#elif defined(__AVX__)
inline constexpr int kPanelVectors = 2;  // 6 x 2 + 2 + 1 of 16
#elif defined(__aarch64__)
inline constexpr int kPanelVectors = 4;
#else
inline constexpr int kPanelVectors = 2;
#endif
inline constexpr int64_t kBlockRows = 6;
template <class C>
inline constexpr int64_t kPanel = kLanes<C> * kPanelVectors;

// c[kRows][kVectors vectors] = or += sum over k in [0, depth) of a(row, k) * b[k][..]. a(row, k) is a[row * lda + k], or
// a[k * lda + row] when kTransposed. Not inlined: among a caller's variables its addresses would be spilled to the stack.
template <class C, int kRows, int kVectors, bool kTransposed>
[[gnu::noinline]] void micro_product(int64_t depth, const C* a, int64_t lda, const C* b, int64_t ldb, C* c, int64_t ldc, bool accumulate) {
  RowPointers<C, kRows, kTransposed> left(a, lda);
  Lanes<C> sum[kRows][kVectors] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    add_products(sum, b, left);
    left.advance(kTransposed ? lda : 1);
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      C* to = c + i * ldc + j * kLanes<C>;
      store_lanes<C>(to, accumulate ? load_lanes(to) + sum[i][j] : sum[i][j]);
    }
}

template <class C, bool kTransposed, int kRows, int kVectors>
inline void micro_dispatch(int rows, int vectors, int64_t depth, const C* a, int64_t lda, const C* b, int64_t ldb, C* c, int64_t ldc,
                           bool accumulate) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors)
      return micro_dispatch<C, kTransposed, kRows, kVectors - 1>(rows, vectors, depth, a, lda, b, ldb, c, ldc, accumulate);
  }
  if constexpr (kRows > 1) {
    if (rows < kRows) return micro_dispatch<C, kTransposed, kRows - 1, kVectors>(rows, vectors, depth, a, lda, b, ldb, c, ldc, accumulate);
  }
  micro_product<C, kRows, kVectors, kTransposed>(depth, a, lda, b, ldb, c, ldc, accumulate);
}

// Which part of a product a block of rows needs: masks make the rest zero or unused.
struct TileRange {
  int64_t depth_begin = 0;
  int64_t depth_end = 0;
  int64_t columns = 0;
};

// The right-hand matrix: element (k, column) is data[(column / kPanel) * panel_step + k * row_step + column % kPanel].
template <class C>
struct TileMatrix {
  const C* data;
  int64_t row_step;
  int64_t panel_step;
};

// c = or += a b for `rows` rows; range(first_row, rows_in_block) gives each block's TileRange. Without accumulate, elements inside
// the range are overwritten and the others left alone.
template <bool kTransposed, class C, class Range>
void tile_product(int64_t rows, int64_t depth, const C* a, int64_t lda, TileMatrix<C> b, C* c, int64_t ldc, bool accumulate, Range range) {
  constexpr int64_t kDepthBlock = 128;  // rows of a panel that stay in the first-level cache while all row blocks pass
  int64_t widest = 0;
  for (int64_t m = 0; m < rows; m += kBlockRows) widest = std::max(widest, range(m, std::min<int64_t>(kBlockRows, rows - m)).columns);
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    for (int64_t n = 0; n < widest; n += kPanel<C>) {
      const C* panel = b.data + n / kPanel<C> * b.panel_step;
      for (int64_t m = 0; m < rows; m += kBlockRows) {
        const int64_t count = std::min<int64_t>(kBlockRows, rows - m);
        const TileRange part = range(m, count);
        const int64_t begin = std::max(k, part.depth_begin);
        const int64_t end = std::min(k + kDepthBlock, part.depth_end);
        const int64_t columns = std::min(part.columns - n, kPanel<C>);
        if (begin >= end || columns <= 0) continue;
        const int vectors = static_cast<int>((columns + kLanes<C> - 1) / kLanes<C>);
        const C* left = kTransposed ? a + begin * lda + m : a + m * lda + begin;
        micro_dispatch<C, kTransposed, kBlockRows, kPanelVectors>(static_cast<int>(count), vectors, end - begin, left, lda,
                                                                  panel + begin * b.row_step, b.row_step, c + m * ldc + n, ldc,
                                                                  accumulate || begin > part.depth_begin);
      }
    }
  }
}

}  // namespace rz::cpu
