// One matrix product on one thread: packed panels and a register-tiled micro-kernel (Goto and van de Geijn 2008, "Anatomy of
// high-performance matrix multiplication").
//
//   block      k is cut into equal blocks of at most kBlockK; the cut depends on k alone
//   panel      a strip of kRows rows of A, or kColumns columns of B, laid out k-major and padded with zeros
//   micro tile kRows x kColumns of C held in registers while one block of k is summed
//
// Each element of C is one chain of multiply-adds over a block, then one addition per block: its bits depend on k and on the
// instruction set the program was built for, on nothing else. Thread-safe; no state; scratch is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/dtype.h"

namespace rz::cpu {

// A matrix with any strides, in elements: element (i, j) is data[i * row_stride + j * column_stride].
template <class T>
struct MatrixView {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

// C (+)= alpha A B (+ bias): A is m x k, B k x n, C m x n, k >= 1. T is float, double, bf16 or f16.
template <class T>
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  MatrixView<T> a, b;
  T* c = nullptr;
  int64_t c_row_stride = 0;  // columns of C are contiguous
  compute_t<T> alpha = 1;
  bool accumulate = false;
  const T* bias = nullptr;  // n elements or null; ignored when accumulating
};

// Bytes of 64-byte-aligned scratch that gemm() needs for a product of these sizes.
template <class T>
size_t gemm_scratch_bytes(int64_t m, int64_t n, int64_t k);

template <class T>
void gemm(const Gemm<T>& g, std::byte* scratch);

}  // namespace rz::cpu
