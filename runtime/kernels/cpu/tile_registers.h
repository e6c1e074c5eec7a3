// Products of panels in tile registers (x86 AMX): sums of bfloat16 products in float32, 16 x 16 x 32 multiply-adds in an instruction. What
// holds more than bfloat16's 8 significant bits is cut into pieces that do:
//
//   float32    3 pieces, which hold it to the bit; 6 of their 9 products. What the others leave out is below 2^-23 of a
//              product, in practice 2^-26, less than a sum in float32 rounds away (Henry, Tang and Heinecke 2019, "Leveraging
//              the bfloat16 artificial intelligence datatype for higher-precision computations", arXiv 1904.06376)
//   float16    2 pieces, all 4 products
//   bfloat16   itself
//
// Denormal numbers count as zero; a float32 below 2^-110 is less exact. docs/adr/0008-products-in-tile-registers.md has the figures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/core/dtype.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

// Whether this build, this CPU and this system have them. All else here needs them.
bool tiles_available();

// Whether the calling rank multiplies in them: they are available, and it may (RankContext::tiles).
bool tiles_in_use();

inline constexpr int64_t kTileRows = 16;              // of a tile; its columns in units of four bytes, too
inline constexpr int64_t kTilePanel = 2 * kTileRows;  // rows of A, columns of B that are multiplied together
inline constexpr int64_t kTileStep = 2 * kTileRows;   // of k, that one tile of A or B holds
inline constexpr int64_t kTileBytes = 64 * kTileRows;
inline constexpr int64_t kMostTilePanels = 64;  // that are packed together

template <class T>
inline constexpr int kPieces = std::is_same_v<T, bf16>  ? 1
                               : std::is_same_v<T, f16> ? 2
                                                        : 3;

// A panel's steps lie one after the other, in each of them every piece's two tiles.
template <class T>
inline constexpr int64_t kTileStepBytes = kPieces<T> * 2 * kTileBytes;
inline int64_t tile_steps(int64_t k) { return ceil_divide(k, kTileStep); }
template <class T>
int64_t tile_panels_bytes(int64_t count, int64_t k) {
  return ceil_divide(count, kTilePanel) * tile_steps(k) * kTileStepBytes<T>;
}

// Sets up the calling thread's tile registers for as long as it lives. Not one inside another.
class TileScope {
 public:
  TileScope();
  ~TileScope();
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

enum class TileOperand { a, b };

// `count` rows of A (columns of B) and k of the other dimension, element (i, p) at from[i * stride + p * k_stride], times `scale`, as
// panels at `to`, 64-byte aligned; zeros up to whole panels and steps. fits[i]: whether pieces hold all of panel i; infinities, NaN and
// what rounds to infinity they do not. T is float, bf16 or f16; the 16-bit ones with a scale of 1.
template <TileOperand kOperand, class T>
void pack_tile_panels(const T* from, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float scale, std::byte* to, bool* fits);

// To the nearest bfloat16, as pieces are; exact halves away from zero. Finite values may become infinite.
float rounded_to_piece(float x);

// Where a sum of products begins: at rows of C, at one row for all (a stride of 0), or, null, at zero.
struct TileStart {
  const float* from = nullptr;
  int64_t stride = 0;
};

// c = start + a b: one panel of A, one of B, `steps` steps. `rows` and `columns` of them count, up to 32; whole tiles of c are written.
// Each element is one chain: its start, then for each step the pieces' products in a fixed order.
template <class T>
void multiply_tile_panels(int64_t rows, int64_t columns, int64_t steps, const std::byte* a, const std::byte* b, TileStart start, float* c,
                          int64_t c_stride);

}  // namespace rz::cpu
