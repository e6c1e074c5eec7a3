#include "runtime/kernels/cpu/gemm_tiles.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_pack.h"
#include "runtime/kernels/cpu/rounding.h"

#if defined(__AVX512F__) && defined(__linux__)
#define RZ_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rz::cpu {

#if RZ_TILES

namespace {

constexpr int kTile = 16;                      // rows of a tile, and its columns in units of four bytes
constexpr int kTileBytes = kTile * kTile * 4;  // 16 x 16 float32, or 16 x 16 pairs of bfloat16
constexpr int kPanel = kTilePanel;             // two tiles of A or B; four of C
static_assert(kPanel == 2 * kTile);
constexpr int kStep = 2 * kTile;  // of k, in a tile of A or B
constexpr int64_t kBlockK = 512;  // at most
// Of the two operands' blocks one stays in the L2 cache, packed, while small blocks of the other pass by it.
constexpr int64_t kLargeBlock = 384, kSmallBlock = 128;
constexpr int64_t kStripN = 2048;
constexpr size_t kAlign = 64;

template <class T>
inline constexpr int kPieces = std::is_same_v<T, float> ? 3
                               : std::is_same_v<T, f16> ? 2
                                                        : 1;
template <class T>
inline constexpr int kStepBytes = kPieces<T> * 2 * kTileBytes;  // of a panel: each piece's two tiles

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
int64_t steps_of(int64_t k) { return ceil_divide(k, kStep); }
int64_t block_k(int64_t k) { return round_up(ceil_divide(k, ceil_divide(k, kBlockK)), kStep); }

// GCC's intrinsics for tiles do not tell the compiler which memory they read and write.
#define RZ_TILE_LOAD(tile, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define RZ_TILE_STORE(tile, to, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define RZ_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : : : "memory")
#define RZ_TILE_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

// Tiles of 16 rows of 64 bytes for as long as it lives.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof(config) == 64);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~TileScope() { asm volatile("tilerelease" : : : "memory"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

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
[[gnu::always_inline]] inline void multiply() {
  RZ_TILE_MULTIPLY(0, 4, 6);
  if constexpr (Columns > 1) RZ_TILE_MULTIPLY(1, 4, 7);
  if constexpr (Rows > 1) RZ_TILE_MULTIPLY(2, 5, 6);
  if constexpr (Rows > 1 && Columns > 1) RZ_TILE_MULTIPLY(3, 5, 7);
}

// c = a b (+ bias, of its columns, or null) over `steps` steps of two panels.
template <int Pieces, int Rows, int Columns>
void multiply_panels(int64_t steps, const std::byte* a, const std::byte* b, const float* bias, float* c, int64_t c_stride) {
  constexpr int kPiece = 2 * kTileBytes;
  const int64_t stride = c_stride * static_cast<int64_t>(sizeof(float));
  if (bias == nullptr) {
    RZ_TILE_ZERO(0);
    RZ_TILE_ZERO(1);
    RZ_TILE_ZERO(2);
    RZ_TILE_ZERO(3);
  } else {
    constexpr int kSameRow = 0;
    RZ_TILE_LOAD(0, bias, kSameRow);
    RZ_TILE_LOAD(1, bias + kTile, kSameRow);
    if constexpr (Rows > 1) RZ_TILE_LOAD(2, bias, kSameRow);
    if constexpr (Rows > 1) RZ_TILE_LOAD(3, bias + kTile, kSameRow);
  }
  for (int64_t s = 0; s < steps; ++s) {
    // Smaller products first; from one to the next only one side changes.
    if constexpr (Pieces == 3) {
      load_a<Rows, Columns>(a);
      load_b<Rows, Columns>(b + 2 * kPiece);
      multiply<Rows, Columns>();
      load_b<Rows, Columns>(b + kPiece);
      multiply<Rows, Columns>();
      load_a<Rows, Columns>(a + kPiece);
      multiply<Rows, Columns>();
      load_b<Rows, Columns>(b);
      multiply<Rows, Columns>();
      load_a<Rows, Columns>(a + 2 * kPiece);
      multiply<Rows, Columns>();
    } else if constexpr (Pieces == 2) {
      load_a<Rows, Columns>(a + kPiece);
      load_b<Rows, Columns>(b + kPiece);
      multiply<Rows, Columns>();
      load_b<Rows, Columns>(b);
      multiply<Rows, Columns>();
      load_b<Rows, Columns>(b + kPiece);
      load_a<Rows, Columns>(a);
      multiply<Rows, Columns>();
    }
    load_a<Rows, Columns>(a);
    if constexpr (Pieces != 3) load_b<Rows, Columns>(b);
    multiply<Rows, Columns>();
    a += Pieces * kPiece;
    b += Pieces * kPiece;
  }
  RZ_TILE_STORE(0, c, stride);
  if constexpr (Columns > 1) RZ_TILE_STORE(1, c + kTile, stride);
  if constexpr (Rows > 1) RZ_TILE_STORE(2, c + kTile * c_stride, stride);
  if constexpr (Rows > 1 && Columns > 1) RZ_TILE_STORE(3, c + kTile * c_stride + kTile, stride);
}

template <int Pieces>
void multiply_panels(int64_t rows, int64_t columns, int64_t steps, const std::byte* a, const std::byte* b, const float* bias, float* c,
                     int64_t c_stride) {
  const auto kernel = rows > kTile ? (columns > kTile ? multiply_panels<Pieces, 2, 2> : multiply_panels<Pieces, 2, 1>)
                                   : (columns > kTile ? multiply_panels<Pieces, 1, 2> : multiply_panels<Pieces, 1, 1>);
  kernel(steps, a, b, bias, c, c_stride);
}

// Packing. A tile of A or B holds in each of its 16 x 16 places a pair along k: its low half k, the high half k + 16. Of A a row is a row
// of the tile, of B a column, so that one of them is always read along the tile's rows and the other, at need, transposed.

using V = Vector<float>::type;
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));

// To the nearest bfloat16, as the upper half of its bits; exact halves away from zero. Finite values may become infinite.
constexpr uint32_t kHalf = 0x8000, kUpper = 0xffff0000;
float rounded_to_piece(float x) { return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + kHalf) & kUpper); }

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
  return half.rows == kTile && half.columns == kTile && half.column_stride == 1;
}

template <class T>
[[gnu::always_inline]] inline void load_half(const Half<T>& half, V (&rows)[kTile]) {
  if (half.rows == kTile && half.columns == kTile && half.row_stride == 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) rows[i] = load_vector<T, float>(half.from + i * half.column_stride);
    transpose<float>(rows);
    return;
  }
  alignas(64) float staged[kTile][kTile] = {};
  for (int64_t i = 0; i < half.rows; ++i)
    for (int64_t j = 0; j < half.columns; ++j) staged[i][j] = static_cast<float>(half.from[i * half.row_stride + j * half.column_stride]);
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) rows[i] = load_vector<float, float>(staged[i]);
}

template <class T>
void pack_tile(const Half<T>& low, const Half<T>& high, float scale, std::byte* to, V& misfit) {
  if (along_rows(low) && along_rows(high)) {
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i)
      store_pairs<kPieces<T>>(load_vector<T, float>(low.from + i * low.row_stride) * scale,
                              load_vector<T, float>(high.from + i * high.row_stride) * scale, to + i * 64, misfit);
    return;
  }
  V l[kTile], h[kTile];
  load_half(low, l);
  load_half(high, h);
  for (int i = 0; i < kTile; ++i) store_pairs<kPieces<T>>(l[i] * scale, h[i] * scale, to + i * 64, misfit);
}

enum class Operand { a, b };

// One step of a panel of up to 32 rows of A (columns of B).
template <Operand kOperand, class T>
void pack_step(const T* from, int64_t stride, int64_t k_stride, int64_t count, int64_t depth, float scale, std::byte* to, V& misfit) {
  const int64_t depths[2] = {std::min<int64_t>(kTile, depth), std::max<int64_t>(depth - kTile, 0)};
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t wide = std::min<int64_t>(kTile, count - first);
    Half<T> halves[2];
    for (int h = 0; h < 2; ++h) {
      const T* at = from + first * stride + h * kTile * k_stride;
      halves[h] = kOperand == Operand::a ? Half<T>{at, stride, k_stride, wide, depths[h]} : Half<T>{at, k_stride, stride, depths[h], wide};
    }
    pack_tile(halves[0], halves[1], scale, to + first / kTile * kTileBytes, misfit);
  }
}

// A step's elements, of which runs of a few hundred bytes lie together: no hardware prefetcher sees them coming.
constexpr int64_t kStepsAhead = 2;
template <class T>
void prefetch_step(const T* from, int64_t stride, int64_t k_stride) {
  const int64_t run_stride = stride == 1 ? k_stride : stride;
  for (int64_t run = 0; run < kPanel; ++run)
    for (int64_t element = 0; element < kPanel; element += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(from + run * run_stride + element);
}

// Panels of rows of A (columns of B), each its steps one after the other; fits[i] says whether pieces hold all of panel i. What lies
// side by side in memory is read side by side: whole cache lines and few pages.
template <Operand kOperand, class T>
void pack_panels(const T* from, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float scale, std::byte* to, bool* fits) {
  const int64_t panels = ceil_divide(count, kPanel), steps = steps_of(k);
  std::array<V, kStripN / kPanel> misfits;
  std::fill_n(misfits.begin(), panels, V{});
  const auto pack = [&](int64_t panel, int64_t step) {
    if (step + kStepsAhead < steps)
      prefetch_step(from + panel * kPanel * stride + (step + kStepsAhead) * kStep * k_stride, stride, k_stride);
    pack_step<kOperand>(from + panel * kPanel * stride + step * kStep * k_stride, stride, k_stride,
                        std::min<int64_t>(kPanel, count - panel * kPanel), std::min<int64_t>(kStep, k - step * kStep), scale,
                        to + (panel * steps + step) * kStepBytes<T>, misfits[static_cast<size_t>(panel)]);
  };
  if (stride == 1) {
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t panel = 0; panel < panels; ++panel) pack(panel, step);
  } else {
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t step = 0; step < steps; ++step) pack(panel, step);
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    fits[panel] = true;
    for (int l = 0; l < kLanes<float>; ++l) fits[panel] = fits[panel] && !std::isnan(misfits[static_cast<size_t>(panel)][l]);
  }
}

// How a product of m rows and n columns is cut. Large blocks of A, small ones of B, unless one large block is all of B. Columns are packed
// together for all rows, a strip of them, or, where one block is all of A, small block by small block, while they are near.
struct Blocks {
  int64_t m, n, packed_n;
  Blocks(int64_t rows, int64_t columns)
      : m(columns <= kLargeBlock ? kSmallBlock : kLargeBlock),
        n(columns <= kLargeBlock ? kLargeBlock : kSmallBlock),
        packed_n(rows <= m ? n : kStripN) {}
};

template <class T>
struct Layout {
  size_t a_bytes, b_bytes, bias_bytes, c_bytes;
  Layout(int64_t m, int64_t n, int64_t k) {
    const int64_t steps = steps_of(block_k(k));
    const auto panels = [&](int64_t count) { return aligned(static_cast<size_t>(ceil_divide(count, kPanel) * steps) * kStepBytes<T>); };
    const Blocks blocks(m, n);
    a_bytes = panels(std::min(m, blocks.m));
    b_bytes = panels(std::min(n, blocks.packed_n));
    bias_bytes = aligned(static_cast<size_t>(round_up(std::min(n, kStripN), kPanel)) * sizeof(float));
    // 16-bit results are summed in float and rounded once.
    c_bytes = std::is_same_v<T, float> ? 0 : aligned(static_cast<size_t>(m * std::min(n, kStripN)) * sizeof(float));
  }
  size_t total() const { return a_bytes + b_bytes + bias_bytes + c_bytes; }
};

// The products of one block of A's panels with one of B's.
template <class T>
class Product {
 public:
  Product(const Gemm<T>& g, std::byte* scratch) : g_(g), layout_(g.m, g.n, g.k), blocks_(g.m, g.n) {
    a_ = scratch;
    b_ = a_ + layout_.a_bytes;
    bias_ = reinterpret_cast<float*>(b_ + layout_.b_bytes);
    sums_ = reinterpret_cast<float*>(b_ + layout_.b_bytes + layout_.bias_bytes);
  }

  void run() {
    const TileScope tiles;
    for (strip_ = 0; strip_ < g_.n; strip_ += kStripN) {
      width_ = std::min(kStripN, g_.n - strip_);
      begin_strip();
      for (from_k_ = 0; from_k_ < g_.k; from_k_ += block_k(g_.k)) {
        depth_ = std::min(block_k(g_.k), g_.k - from_k_);
        panel_bytes_ = steps_of(depth_) * kStepBytes<T>;
        for (from_column_ = 0; from_column_ < width_; from_column_ += blocks_.packed_n) {
          packed_columns_ = std::min(blocks_.packed_n, width_ - from_column_);
          pack_b();
          for (from_row_ = 0; from_row_ < g_.m; from_row_ += blocks_.m) multiply_block();
        }
      }
      if constexpr (!kDirect)
        for (int64_t i = 0; i < g_.m; ++i) store_run(sums_ + i * width_, g_.c + i * g_.c_row_stride + strip_, 1, width_, g_.accumulate);
    }
  }

 private:
  static constexpr bool kDirect = std::is_same_v<T, float>;

  void begin_strip() {
    with_bias_ = g_.bias != nullptr && !g_.accumulate;
    if (with_bias_) {
      load_run(g_.bias + strip_, 1, bias_, width_);
      std::fill(bias_ + width_, bias_ + round_up(width_, kPanel), 0.0f);
    }
    if constexpr (kDirect)
      c_ = g_.c + strip_, c_stride_ = g_.c_row_stride;
    else
      c_ = sums_, c_stride_ = width_;
  }

  void pack_b() {
    const T* b = g_.b.data + (strip_ + from_column_) * g_.b.column_stride + from_k_ * g_.b.row_stride;
    pack_panels<Operand::b>(b, g_.b.column_stride, g_.b.row_stride, packed_columns_, depth_, 1.0f, b_, b_fits_.data());
  }

  void pack_a(int64_t rows) {
    const T* a = g_.a.data + from_row_ * g_.a.row_stride + from_k_ * g_.a.column_stride;
    pack_panels<Operand::a>(a, g_.a.row_stride, g_.a.column_stride, rows, depth_, g_.alpha, a_, a_fits_.data());
  }

  void multiply_block() {
    const int64_t rows = std::min(blocks_.m, g_.m - from_row_);
    if (from_column_ == 0 || rows < g_.m) pack_a(rows);
    for (int64_t block = 0; block < packed_columns_; block += blocks_.n)
      for (int64_t i = 0; i < rows; i += kPanel)
        for (int64_t j = block; j < std::min(block + blocks_.n, packed_columns_); j += kPanel)
          multiply_panel(i, std::min<int64_t>(kPanel, rows - i), j, std::min<int64_t>(kPanel, packed_columns_ - j));
  }

  void multiply_panel(int64_t i, int64_t rows, int64_t j, int64_t columns) {
    const std::byte* a = a_ + i / kPanel * panel_bytes_;
    const std::byte* b = b_ + j / kPanel * panel_bytes_;
    float* c = c_ + (from_row_ + i) * c_stride_ + from_column_ + j;
    const bool fits = a_fits_[static_cast<size_t>(i / kPanel)] && b_fits_[static_cast<size_t>(j / kPanel)];
    const bool add = from_k_ > 0 || (kDirect && g_.accumulate);
    const float* bias = with_bias_ && !add ? bias_ + from_column_ + j : nullptr;
    if (rows % kTile == 0 && columns % kTile == 0 && fits && !add)
      return multiply_panels<kPieces<T>>(rows, columns, steps_of(depth_), a, b, bias, c, c_stride_);
    // At the edges tiles are larger than C. A block's sum is taken before it is added: one rounding at the size of C for each block.
    alignas(64) float sums[kPanel * kPanel];
    multiply_panels<kPieces<T>>(rows, columns, steps_of(depth_), a, b, bias, sums, kPanel);
    if (!fits) multiply_one_by_one(i, rows, j, columns, bias, sums);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = c + r * c_stride_;
      const float* from = sums + r * kPanel;
      if (!add)
        std::memcpy(row, from, static_cast<size_t>(columns) * sizeof(float));
      else if (columns == kPanel)
        for (int64_t s = 0; s < kPanel; ++s) row[s] += from[s];
      else
        for (int64_t s = 0; s < columns; ++s) row[s] += from[s];
    }
  }

  // Rows and columns of a panel's product with an element that pieces cannot hold.
  void multiply_one_by_one(int64_t i, int64_t rows, int64_t j, int64_t columns, const float* bias, float* sums) {
    const auto a = [&](int64_t r, int64_t q) {
      return g_.alpha * static_cast<float>(g_.a.data[(from_row_ + i + r) * g_.a.row_stride + (from_k_ + q) * g_.a.column_stride]);
    };
    const auto b = [&](int64_t s, int64_t q) {
      return static_cast<float>(g_.b.data[(from_k_ + q) * g_.b.row_stride + (strip_ + from_column_ + j + s) * g_.b.column_stride]);
    };
    const auto fits = [&](const auto& element, int64_t index) {
      bool all = true;
      for (int64_t q = 0; q < depth_; ++q) all = all && std::isfinite(rounded_to_piece(element(index, q)));
      return all;
    };
    std::array<bool, kPanel> column_fits;
    for (int64_t s = 0; s < columns; ++s) column_fits[static_cast<size_t>(s)] = fits(b, s);
    for (int64_t r = 0; r < rows; ++r) {
      const bool row_fits = fits(a, r);
      for (int64_t s = 0; s < columns; ++s) {
        if (row_fits && column_fits[static_cast<size_t>(s)]) continue;
        float sum = bias == nullptr ? 0 : bias[s];
        for (int64_t q = 0; q < depth_; ++q) sum = std::fma(a(r, q), b(s, q), sum);
        sums[r * kPanel + s] = sum;
      }
    }
  }

  const Gemm<T>& g_;
  const Layout<T> layout_;
  const Blocks blocks_;
  std::byte *a_, *b_;
  float *bias_, *sums_;
  // A strip of columns, and the block of k and rows that is multiplied.
  int64_t strip_ = 0, width_ = 0, from_k_ = 0, depth_ = 0, from_column_ = 0, packed_columns_ = 0, from_row_ = 0;
  int64_t panel_bytes_ = 0;
  float* c_ = nullptr;  // of the strip
  int64_t c_stride_ = 0;
  bool with_bias_ = false;
  std::array<bool, kLargeBlock / kPanel> a_fits_;
  std::array<bool, kStripN / kPanel> b_fits_;
};

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

template <class T>
size_t gemm_tiles_scratch_bytes(int64_t m, int64_t n, int64_t k) {
  return Layout<T>(m, n, k).total();
}

template <class T>
void gemm_tiles(const Gemm<T>& g, std::byte* scratch) {
  if (g.m > 0 && g.n > 0) Product<T>(g, scratch).run();
}

#else

bool tiles_available() { return false; }
template <class T>
size_t gemm_tiles_scratch_bytes(int64_t, int64_t, int64_t) {
  RZ_CHECK(false, "this build has no tiles");
}
template <class T>
void gemm_tiles(const Gemm<T>&, std::byte*) {
  RZ_CHECK(false, "this build has no tiles");
}

#endif

#define RZ_INSTANTIATE(T)                                                 \
  template size_t gemm_tiles_scratch_bytes<T>(int64_t, int64_t, int64_t); \
  template void gemm_tiles<T>(const Gemm<T>&, std::byte*);
RZ_INSTANTIATE(float)
RZ_INSTANTIATE(bf16)
RZ_INSTANTIATE(f16)
#undef RZ_INSTANTIATE

}  // namespace rz::cpu
