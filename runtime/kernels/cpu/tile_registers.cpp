#include "runtime/kernels/cpu/tile_registers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/cpu/gemm_pack.h"

#if defined(__AVX512F__) && defined(__linux__)
#define RZ_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rz::cpu {

namespace {

constexpr uint32_t kHalf = 0x8000, kUpper = 0xffff0000;

}  // namespace

bool tiles_in_use() { return RankContext::current()->tiles() && tiles_available(); }

float rounded_to_piece(float x) { return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + kHalf) & kUpper); }

#if RZ_TILES

namespace {

// GCC's intrinsics for tiles do not tell the compiler which memory they read and write.
#define RZ_TILE_LOAD(tile, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define RZ_TILE_STORE(tile, to, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define RZ_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : : : "memory")
#define RZ_TILE_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

// Tiles 0 to 3 are C, 4 and 5 A, 6 and 7 B. Of two tiles' rows and columns, or of one's.
template <int Rows, int Columns>
[[gnu::always_inline]] inline void load_a(const std::byte* a) {
  RZ_TILE_LOAD(4, a, 64);
  if constexpr (Rows > 1) RZ_TILE_LOAD(5, a + kTileBytes, 64);
}
template <int Rows, int Columns>
[[gnu::always_inline]] inline void load_b(const std::byte* b) {
  RZ_TILE_LOAD(6, b, 64);
  if constexpr (Columns > 1) RZ_TILE_LOAD(7, b + kTileBytes, 64);
}
template <int Rows, int Columns>
[[gnu::always_inline]] inline void multiply_tiles() {
  RZ_TILE_MULTIPLY(0, 4, 6);
  if constexpr (Columns > 1) RZ_TILE_MULTIPLY(1, 4, 7);
  if constexpr (Rows > 1) RZ_TILE_MULTIPLY(2, 5, 6);
  if constexpr (Rows > 1 && Columns > 1) RZ_TILE_MULTIPLY(3, 5, 7);
}

template <int Pieces, int Rows, int Columns>
void multiply(int64_t steps, const std::byte* a, const std::byte* b, TileStart start, float* c, int64_t c_stride) {
  constexpr int64_t kPiece = 2 * kTileBytes;
  const int64_t stride = c_stride * static_cast<int64_t>(sizeof(float));
  if (start.from == nullptr) {
    RZ_TILE_ZERO(0);
    RZ_TILE_ZERO(1);
    RZ_TILE_ZERO(2);
    RZ_TILE_ZERO(3);
  } else {
    const int64_t from_stride = start.stride * static_cast<int64_t>(sizeof(float));
    RZ_TILE_LOAD(0, start.from, from_stride);
    if constexpr (Columns > 1) RZ_TILE_LOAD(1, start.from + kTileRows, from_stride);
    if constexpr (Rows > 1) RZ_TILE_LOAD(2, start.from + kTileRows * start.stride, from_stride);
    if constexpr (Rows > 1 && Columns > 1) RZ_TILE_LOAD(3, start.from + kTileRows * start.stride + kTileRows, from_stride);
  }
  for (int64_t s = 0; s < steps; ++s) {
    // Smaller products first; from one to the next only one side changes.
    if constexpr (Pieces == 3) {
      load_a<Rows, Columns>(a);
      load_b<Rows, Columns>(b + 2 * kPiece);
      multiply_tiles<Rows, Columns>();
      load_b<Rows, Columns>(b + kPiece);
      multiply_tiles<Rows, Columns>();
      load_a<Rows, Columns>(a + kPiece);
      multiply_tiles<Rows, Columns>();
      load_b<Rows, Columns>(b);
      multiply_tiles<Rows, Columns>();
      load_a<Rows, Columns>(a + 2 * kPiece);
      multiply_tiles<Rows, Columns>();
    } else if constexpr (Pieces == 2) {
      load_a<Rows, Columns>(a + kPiece);
      load_b<Rows, Columns>(b + kPiece);
      multiply_tiles<Rows, Columns>();
      load_b<Rows, Columns>(b);
      multiply_tiles<Rows, Columns>();
      load_b<Rows, Columns>(b + kPiece);
      load_a<Rows, Columns>(a);
      multiply_tiles<Rows, Columns>();
    }
    load_a<Rows, Columns>(a);
    if constexpr (Pieces != 3) load_b<Rows, Columns>(b);
    multiply_tiles<Rows, Columns>();
    a += Pieces * kPiece;
    b += Pieces * kPiece;
  }
  RZ_TILE_STORE(0, c, stride);
  if constexpr (Columns > 1) RZ_TILE_STORE(1, c + kTileRows, stride);
  if constexpr (Rows > 1) RZ_TILE_STORE(2, c + kTileRows * c_stride, stride);
  if constexpr (Rows > 1 && Columns > 1) RZ_TILE_STORE(3, c + kTileRows * c_stride + kTileRows, stride);
}

// Packing. A tile of A or B holds in each of its 16 x 16 places a pair along k: its low half k, the high half k + 16. Of A a row is a row
// of the tile, of B a column, so that one of them is always read along the tile's rows and the other, at need, transposed.

using V = Lanes<float>;
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));

// The pieces of 16 pairs, each at its place of a step. What does not fit pieces leaves a NaN in `misfit`, whose other elements are zero.
template <int Pieces>
[[gnu::always_inline]] inline void store_pairs(V low, V high, std::byte* to, V& misfit) {
#pragma GCC unroll 4
  for (int piece = 0; piece < Pieces; ++piece) {
    Bits l = reinterpret_cast<Bits>(low), h = reinterpret_cast<Bits>(high);
    if (piece + 1 < Pieces) {
      l += kHalf;
      h += kHalf;
      low -= reinterpret_cast<V>(l & kUpper);
      high -= reinterpret_cast<V>(h & kUpper);
    }
    *reinterpret_cast<Bits*>(to + piece * 2 * kTileBytes) = (l >> 16) | (h & kUpper);
  }
  // The last remainder: infinity less infinity, or what it became.
  if constexpr (Pieces > 1) misfit += (low + high) * V{};
}

// A 16 x 16 block of elements in the orientation of a tile.
template <class T>
struct Half {
  const T* from;
  int64_t row_stride, column_stride;
  int64_t rows, columns;  // beyond these: zeros
};

template <class T>
bool along_rows(const Half<T>& half) {
  return half.rows == kTileRows && half.columns == kTileRows && half.column_stride == 1;
}

template <class T>
[[gnu::always_inline]] inline void load_half(const Half<T>& half, V (&rows)[kTileRows]) {
  if (half.rows == kTileRows && half.columns == kTileRows && half.row_stride == 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) rows[i] = load_lanes(half.from + i * half.column_stride);
    transpose<float>(rows);
    return;
  }
  alignas(64) float staged[kTileRows][kTileRows] = {};
  for (int64_t i = 0; i < half.rows; ++i)
    for (int64_t j = 0; j < half.columns; ++j) staged[i][j] = static_cast<float>(half.from[i * half.row_stride + j * half.column_stride]);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) rows[i] = load_lanes(staged[i]);
}

template <class T>
void pack_tile(const Half<T>& low, const Half<T>& high, float scale, std::byte* to, V& misfit) {
  if (along_rows(low) && along_rows(high)) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileRows; ++i)
      store_pairs<kPieces<T>>(load_lanes(low.from + i * low.row_stride) * scale, load_lanes(high.from + i * high.row_stride) * scale,
                              to + i * 64, misfit);
    return;
  }
  V l[kTileRows], h[kTileRows];
  load_half(low, l);
  load_half(high, h);
  for (int i = 0; i < kTileRows; ++i) store_pairs<kPieces<T>>(l[i] * scale, h[i] * scale, to + i * 64, misfit);
}

// One step of a panel of up to 32 rows of A (columns of B).
template <TileOperand kOperand, class T>
void pack_step(const T* from, int64_t stride, int64_t k_stride, int64_t count, int64_t depth, float scale, std::byte* to, V& misfit) {
  const int64_t depths[2] = {std::min<int64_t>(kTileRows, depth), std::max<int64_t>(depth - kTileRows, 0)};
  for (int64_t first = 0; first < count; first += kTileRows) {
    const int64_t wide = std::min<int64_t>(kTileRows, count - first);
    Half<T> halves[2];
    for (int h = 0; h < 2; ++h) {
      const T* at = from + first * stride + h * kTileRows * k_stride;
      halves[h] =
          kOperand == TileOperand::a ? Half<T>{at, stride, k_stride, wide, depths[h]} : Half<T>{at, k_stride, stride, depths[h], wide};
    }
    pack_tile(halves[0], halves[1], scale, to + first / kTileRows * kTileBytes, misfit);
  }
}

// The elements of a panel's step, of which runs of a hundred bytes lie together: no hardware prefetcher sees them coming.
constexpr int64_t kBlocksAhead = 2;
template <class T>
void prefetch_block(const T* from, int64_t stride, int64_t k_stride) {
  const int64_t run_stride = stride == 1 ? k_stride : stride;
  for (int64_t run = 0; run < kTilePanel; ++run)
    for (int64_t element = 0; element < kTilePanel; element += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(from + run * run_stride + element);
}

bool find_tiles() {
  constexpr unsigned kTileBit = 1u << 24, kBf16Bit = 1u << 22;
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTileBit) == 0 || (d & kBf16Bit) == 0) return false;
  // Linux saves tile registers only for processes that ask (Documentation/arch/x86/xstate.rst).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool tiles_available() {
  static const bool available = find_tiles();
  return available;
}

TileScope::TileScope() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  static_assert(sizeof(config) == 64);
  asm volatile("ldtilecfg %0" : : "m"(config));
}
TileScope::~TileScope() { asm volatile("tilerelease" : : : "memory"); }

template <class T>
void multiply_tile_panels(int64_t rows, int64_t columns, int64_t steps, const std::byte* a, const std::byte* b, TileStart start, float* c,
                          int64_t c_stride) {
  constexpr int kOf = kPieces<T>;
  const auto kernel = rows > kTileRows ? (columns > kTileRows ? multiply<kOf, 2, 2> : multiply<kOf, 2, 1>)
                                       : (columns > kTileRows ? multiply<kOf, 1, 2> : multiply<kOf, 1, 1>);
  kernel(steps, a, b, start, c, c_stride);
}

// What lies side by side in memory is read side by side: whole cache lines and few pages.
template <TileOperand kOperand, class T>
void pack_tile_panels(const T* from, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float scale, std::byte* to, bool* fits) {
  const int64_t panels = ceil_divide(count, kTilePanel), steps = tile_steps(k);
  RZ_CHECK(panels <= kMostTilePanels, "{} panels of tiles at once, more than {}", panels, kMostTilePanels);
  std::array<V, kMostTilePanels> misfits;
  std::fill_n(misfits.begin(), panels, V{});
  // Block `index` in the order of packing: panel and step.
  const auto place = [&](int64_t index) {
    return stride == 1 ? std::pair(index % panels, index / panels) : std::pair(index / steps, index % steps);
  };
  for (int64_t index = 0; index < panels * steps; ++index) {
    const auto [panel, step] = place(index);
    if (index + kBlocksAhead < panels * steps) {
      const auto [next_panel, next_step] = place(index + kBlocksAhead);
      prefetch_block(from + next_panel * kTilePanel * stride + next_step * kTileStep * k_stride, stride, k_stride);
    }
    pack_step<kOperand>(from + panel * kTilePanel * stride + step * kTileStep * k_stride, stride, k_stride,
                        std::min<int64_t>(kTilePanel, count - panel * kTilePanel), std::min<int64_t>(kTileStep, k - step * kTileStep),
                        scale, to + (panel * steps + step) * kTileStepBytes<T>, misfits[static_cast<size_t>(panel)]);
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    fits[panel] = true;
    for (int l = 0; l < kLanes<float>; ++l) fits[panel] = fits[panel] && !std::isnan(misfits[static_cast<size_t>(panel)][l]);
  }
}

#else

bool tiles_available() { return false; }

#define RZ_NO_TILES() RZ_CHECK(false, "this build has no tile registers: ask tiles_available() first")
TileScope::TileScope() { RZ_NO_TILES(); }
TileScope::~TileScope() = default;
template <class T>
void multiply_tile_panels(int64_t, int64_t, int64_t, const std::byte*, const std::byte*, TileStart, float*, int64_t) {
  RZ_NO_TILES();
}
template <TileOperand kOperand, class T>
void pack_tile_panels(const T*, int64_t, int64_t, int64_t, int64_t, float, std::byte*, bool*) {
  RZ_NO_TILES();
}

#endif

#define RZ_INSTANTIATE(T)                                                                                                 \
  template void pack_tile_panels<TileOperand::a>(const T*, int64_t, int64_t, int64_t, int64_t, float, std::byte*, bool*); \
  template void pack_tile_panels<TileOperand::b>(const T*, int64_t, int64_t, int64_t, int64_t, float, std::byte*, bool*); \
  template void multiply_tile_panels<T>(int64_t, int64_t, int64_t, const std::byte*, const std::byte*, TileStart, float*, int64_t);
RZ_INSTANTIATE(float)
RZ_INSTANTIATE(bf16)
RZ_INSTANTIATE(f16)
#undef RZ_INSTANTIATE

}  // namespace rz::cpu
