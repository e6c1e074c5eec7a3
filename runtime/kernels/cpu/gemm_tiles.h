// Matrix products in tile registers (x86 AMX): sums of bfloat16 products in float32, a thousand of them in an instruction. Elements that
// hold more than bfloat16's 8 significant bits are cut into pieces that do:
//
//   float32    3 pieces, which hold it to the bit; 6 of their 9 products. What the others leave out is below 2^-23 of a product, in
//   practice
//              2^-26, less than a sum in float32 rounds away (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial
//              intelligence datatype for higher-precision computations", arXiv 1904.06376)
//   float16    2 pieces, all 4 products
//   bfloat16   itself
//
// Each element of C is one chain over a block of k, for every 32 of it the pieces' products in a fixed order, then one addition per block:
// its bits depend on k alone, as gemm()'s do, but are not gemm()'s. Products with numbers that no piece can hold (infinities, NaN and what
// rounds to infinity) are multiply-adds one by one. Denormal numbers count as zero; a float32 below 2^-110 is less exact.
#pragma once

#include "runtime/kernels/cpu/gemm.h"

namespace rz::cpu {

inline constexpr int64_t kTilePanel = 32;  // rows of A, columns of B that are multiplied together

// Whether this build, this CPU and this system have them.
bool tiles_available();

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
