// The micro-kernel: a tile of C in vector registers, written with GCC's vector extension so that one source serves AVX-512,
// AVX2, SSE and NEON; the tile is as large as the register file allows.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/kernels/cpu/lanes.h"

namespace rz::cpu {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int64_t kMicroRows = 12;
#else
inline constexpr int64_t kMicroRows = 6;
#endif
inline constexpr int64_t kMicroVectors = 2;  // columns of the tile, in vectors

template <class C>
inline constexpr int64_t kMicroColumns = kMicroVectors* kLanes<C>;

// What happens to a finished tile: c (+)= alpha * tile, plus bias on overwriting.
template <class C>
struct Epilogue {
  C alpha;
  bool accumulate;
  const C* bias;  // of this tile's columns, or null; readable for whole vectors
};

// Writes a tile held in registers: `columns` <= Vectors * lanes of its columns.
template <class C, int Rows, int Vectors>
[[gnu::always_inline]] inline void store_tile(const Lanes<C> (&tile)[Rows][Vectors], C* __restrict c, int64_t c_stride, int columns,
                                              const Epilogue<C>& e) {
  constexpr int64_t lanes = kLanes<C>;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    C* row = c + i * c_stride;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const int64_t left = columns - j * lanes;
      if (left <= 0) break;
      Lanes<C> old = {};
      if (e.accumulate) {
        if (left >= lanes)
          old = load_lanes(row + j * lanes);
        else
          std::memcpy(&old, row + j * lanes, static_cast<size_t>(left) * sizeof(C));
      } else if (e.bias != nullptr) {
        old = load_lanes(e.bias + j * lanes);
      }
      const Lanes<C> value = e.alpha * tile[i][j] + old;
      if (left >= lanes)
        store_lanes<C>(row + j * lanes, value);
      else
        std::memcpy(row + j * lanes, &value, static_cast<size_t>(left) * sizeof(C));
    }
  }
}

// tile[i] += left(i) * b, a vector row: one step of the sums that a tile is.
template <class C, int Rows, int Vectors, class Left>
[[gnu::always_inline]] inline void add_products(Lanes<C> (&tile)[Rows][Vectors], const C* b, const Left& left) {
  Lanes<C> right[Vectors];
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; ++j) right[j] = load_lanes(b + j * kLanes<C>);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const C factor = left(i);
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) tile[i][j] += factor * right[j];
  }
}

// Pointers to some rows of A, so that few registers and the addressing modes of most machines reach all: to every third where rows lie
// `row_step` apart, to one where they follow each other.
template <class C, int Rows, bool kTogether>
class RowPointers {
 public:
  RowPointers(const C* a, int64_t row_step) : row_step_(row_step) {
    for (int g = 0; g < kGroups; ++g) from_[g] = a + g * kGroup * row_step;
  }
  [[gnu::always_inline]] C operator()(int i) const { return from_[i / kGroup][i % kGroup * (kTogether ? 1 : row_step_)]; }
  [[gnu::always_inline]] void advance(int64_t step) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) from_[g] += step;
  }

 private:
  static constexpr int kGroup = kTogether ? Rows : 3;
  static constexpr int kGroups = (Rows + kGroup - 1) / kGroup;
  const C* from_[kGroups];
  int64_t row_step_;
};

// Rows x Vectors tile; b is k x kMicroColumns, packed. Element (i, p) of A is a[i + p * kMicroRows], packed, or, in place,
// a[i * a_stride + p]: then its rows are read where they lie. `columns` <= Vectors * lanes are stored.
template <class C, int Rows, int Vectors, bool kInPlace>
void micro_kernel(int64_t k, const C* __restrict a, [[maybe_unused]] int64_t a_stride, const C* __restrict b, C* __restrict c,
                  int64_t c_stride, int columns, const Epilogue<C>& e) {
  // How many steps ahead B is fetched, 0 = not: where two vectors are at most one cache line, the hardware's prefetchers keep up, and the
  // instructions cost 5 % (ADR 1).
  constexpr int64_t kAhead = kVectorBytes == 64 ? 16 : 0;
  RowPointers<C, Rows, !kInPlace> left(a, a_stride);
  Lanes<C> tile[Rows][Vectors] = {};
  // The tile of C arrives while the sums are taken.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(c + i * c_stride, 1);
    if constexpr (Vectors > 1) __builtin_prefetch(c + i * c_stride + kLanes<C>, 1);
  }
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    if constexpr (kAhead > 0) __builtin_prefetch(b + kAhead * kMicroColumns<C>);
    if constexpr (kAhead > 0 && Vectors > 1) __builtin_prefetch(b + kAhead * kMicroColumns<C> + kLanes<C>);
    add_products(tile, b, left);
    left.advance(kInPlace ? 1 : kMicroRows);
    b += kMicroColumns<C>;
  }
  store_tile<C, Rows, Vectors>(tile, c, c_stride, columns, e);
}

template <class C>
using MicroKernel = void (*)(int64_t, const C*, int64_t, const C*, C*, int64_t, int, const Epilogue<C>&);

// The smallest tile that covers the rows and columns.
template <class C>
MicroKernel<C> kernel_for(int rows, int columns, bool in_place);

}  // namespace rz::cpu
