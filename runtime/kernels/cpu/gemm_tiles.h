// Matrix products in tile registers (tile_registers.h), for float32, bfloat16 and float16.
//
// Each element of C is one chain over a block of k, for every 32 of it the pieces' products in a fixed order, then one addition per block:
// its bits depend on k alone, as gemm()'s do, but are not gemm()'s. Products with numbers that no piece can hold (infinities, NaN and what
// rounds to infinity) are multiply-adds one by one.
#pragma once

#include "runtime/kernels/cpu/gemm.h"
#include "runtime/kernels/cpu/tile_registers.h"

namespace rz::cpu {

// Whether such a product gains by them and is as exact. Not a question of rows and columns: a row's bits depend on k alone.
template <class T>
bool tiles_pay(const Gemm<T>& g) {
  constexpr int64_t kLeastDepth = 32;
  if constexpr (std::is_same_v<T, double>) return false;
  // 16 bits are left as they are: no pieces hold their multiples.
  return g.k >= kLeastDepth && (std::is_same_v<T, float> || g.alpha == 1);
}

// What gemm() promises (gemm.h), of a product for which tiles_pay, where tiles_available; T is not double. `alpha` multiplies the elements
// of A.
template <class T>
size_t gemm_tiles_scratch_bytes(int64_t m, int64_t n, int64_t k);
template <class T>
void gemm_tiles(const Gemm<T>& g, std::byte* scratch);

}  // namespace rz::cpu
