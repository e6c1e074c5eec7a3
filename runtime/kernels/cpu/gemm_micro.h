// The micro-kernel: a tile of C in vector registers, written with GCC's vector extension so that one source serves AVX-512,
// AVX2, SSE and NEON; the tile is as large as the register file allows.
#pragma once

#include <cstdint>
#include <cstring>

namespace rz::cpu {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kMicroRows = 12;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kMicroRows = 6;
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16;
inline constexpr int kMicroRows = 12;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kMicroRows = 6;
#endif
inline constexpr int kMicroVectors = 2;  // columns of the tile, in vectors

// C is float or double. Memory-side vectors need only the alignment of an element.
template <class C>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float memory __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double memory __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class C>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(C));
template <class C>
inline constexpr int kMicroColumns = kMicroVectors* kLanes<C>;

// What happens to a finished tile: c (+)= alpha * tile, plus bias on overwriting.
template <class C>
struct Epilogue {
  C alpha;
  bool accumulate;
  const C* bias;  // of this tile's columns, or null; readable for whole vectors
};

// Writes a tile held in registers: `columns` <= Vectors * lanes of its columns.
template <class C, int Rows, int Vectors>
[[gnu::always_inline]] inline void store_tile(const typename Vector<C>::type (&tile)[Rows][Vectors], C* __restrict c, int64_t c_stride,
                                              int columns, const Epilogue<C>& e) {
  using V = typename Vector<C>::type;
  using M = typename Vector<C>::memory;
  constexpr int lanes = kLanes<C>;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    C* row = c + i * c_stride;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const int left = columns - j * lanes;
      if (left <= 0) break;
      V old = {};
      if (e.accumulate) {
        if (left >= lanes)
          old = *reinterpret_cast<const M*>(row + j * lanes);
        else
          std::memcpy(&old, row + j * lanes, static_cast<size_t>(left) * sizeof(C));
      } else if (e.bias != nullptr) {
        old = *reinterpret_cast<const M*>(e.bias + j * lanes);
      }
      const V value = e.alpha * tile[i][j] + old;
      if (left >= lanes)
        *reinterpret_cast<M*>(row + j * lanes) = value;
      else
        std::memcpy(row + j * lanes, &value, static_cast<size_t>(left) * sizeof(C));
    }
  }
}

// Rows x Vectors tile; b is k x kMicroColumns, packed. Element (i, p) of A is a[i + p * kMicroRows], packed, or, in place,
// a[i * a_stride + p]: then its rows are read where they lie. `columns` <= Vectors * lanes are stored.
template <class C, int Rows, int Vectors, bool kInPlace>
void micro_kernel(int64_t k, const C* __restrict a, [[maybe_unused]] int64_t a_stride, const C* __restrict b, C* __restrict c,
                  int64_t c_stride, int columns, const Epilogue<C>& e) {
  using V = typename Vector<C>::type;
  using M = typename Vector<C>::memory;
  constexpr int lanes = kLanes<C>;
  // How many steps ahead B is fetched, 0 = not: where two vectors are at most one cache line, the hardware's prefetchers keep up, and the
  // instructions cost 5 % (ADR 1).
  constexpr int64_t kAhead = kVectorBytes == 64 ? 16 : 0;
  // A pointer to every third row, so that few registers and the addressing modes of most machines reach all.
  constexpr int kGroup = kInPlace ? 3 : Rows;
  constexpr int kGroups = (Rows + kGroup - 1) / kGroup;
  const C* from[kGroups];
  for (int g = 0; g < kGroups; ++g) from[g] = a + g * kGroup * a_stride;
  V tile[Rows][Vectors] = {};
  // The tile of C arrives while the sums are taken.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(c + i * c_stride, 1);
    if constexpr (Vectors > 1) __builtin_prefetch(c + i * c_stride + lanes, 1);
  }
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    V right[Vectors];
    if constexpr (kAhead > 0) __builtin_prefetch(b + kAhead * kMicroColumns<C>);
    if constexpr (kAhead > 0 && Vectors > 1) __builtin_prefetch(b + kAhead * kMicroColumns<C> + lanes);
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) right[j] = *reinterpret_cast<const M*>(b + j * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const C left = from[i / kGroup][i % kGroup * (kInPlace ? a_stride : 1)];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) tile[i][j] += left * right[j];
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) from[g] += kInPlace ? 1 : kMicroRows;
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
