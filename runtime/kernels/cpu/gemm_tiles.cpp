#include "runtime/kernels/cpu/gemm_tiles.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "runtime/kernels/cpu/gemm_strip.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

namespace {

constexpr int64_t kBlockK = 512;  // at most
// Of the two operands' blocks one stays in the L2 cache, packed, while small blocks of the other pass by it. C's block and what is packed
// next need their share. An A that is not much larger than a block is one: its columns need not be packed for several.
constexpr int64_t kBlock = 256, kSmallBlock = 64;
constexpr int64_t kLargestBlock = 384, kBesideLargest = 128;
constexpr int64_t kStripN = kMostTilePanels * kTilePanel;

int64_t block_k(int64_t k) { return round_up(ceil_divide(k, ceil_divide(k, kBlockK)), kTileStep); }

// How a product of m rows and n columns is cut. Large blocks of A, small ones of B, unless one large block is all of B. Columns are packed
// together for all rows, a strip of them, or, where one block is all of A, small block by small block, while they are near.
struct Blocks {
  int64_t m, n, packed_n;
  Blocks(int64_t rows, int64_t columns)
      : m(columns <= kBlock ? kSmallBlock : (rows <= kLargestBlock ? kLargestBlock : kBlock)),
        n(columns <= kBlock ? kBlock : (rows > kBlock && rows <= kLargestBlock ? kBesideLargest : kSmallBlock)),
        packed_n(rows <= m ? n : kStripN) {}
};

// The parts of the scratch. None shrinks when m or n grows: what is enough for a product is enough for every part of it, however that is cut.
template <class T>
struct Layout {
  int64_t a_bytes, b_bytes, bias_bytes, c_bytes;
  Layout(int64_t m, int64_t n, int64_t k) {
    constexpr int64_t kFloat = sizeof(float);
    a_bytes = tile_panels_bytes<T>(std::min(m, kLargestBlock), block_k(k));
    b_bytes = tile_panels_bytes<T>(std::min(n, m <= kLargestBlock ? kLargestBlock : kStripN), block_k(k));
    bias_bytes = round_up(std::min(n, kStripN), kTilePanel) * kFloat;
    // 16-bit results are summed in float and rounded once.
    c_bytes = std::is_same_v<T, float> ? 0 : round_up(m * std::min(n, kStripN) * kFloat, 64);
  }
  int64_t total() const { return a_bytes + b_bytes + bias_bytes + c_bytes; }
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
    for (from_strip_ = 0; from_strip_ < g_.n; from_strip_ += kStripN) {
      const int64_t width = std::min(kStripN, g_.n - from_strip_);
      const GemmStrip<T> strip(g_, from_strip_, width, kTilePanel, bias_, sums_);
      for (from_k_ = 0; from_k_ < g_.k; from_k_ += block_k(g_.k)) {
        depth_ = std::min(block_k(g_.k), g_.k - from_k_);
        panel_bytes_ = tile_steps(depth_) * kTileStepBytes<T>;
        for (from_column_ = 0; from_column_ < width; from_column_ += blocks_.packed_n) {
          packed_columns_ = std::min(blocks_.packed_n, width - from_column_);
          pack_b();
          for (from_row_ = 0; from_row_ < g_.m; from_row_ += blocks_.m) multiply_block(strip);
        }
      }
      strip.finish();
    }
  }

 private:
  void pack_b() {
    const T* b = g_.b.data + (from_strip_ + from_column_) * g_.b.column_stride + from_k_ * g_.b.row_stride;
    pack_tile_panels<TileOperand::b>(b, g_.b.column_stride, g_.b.row_stride, packed_columns_, depth_, 1.0f, b_, b_fits_.data());
  }

  void pack_a(int64_t rows) {
    const T* a = g_.a.data + from_row_ * g_.a.row_stride + from_k_ * g_.a.column_stride;
    pack_tile_panels<TileOperand::a>(a, g_.a.row_stride, g_.a.column_stride, rows, depth_, g_.alpha, a_, a_fits_.data());
  }

  void multiply_block(const GemmStrip<T>& strip) {
    const int64_t rows = std::min(blocks_.m, g_.m - from_row_);
    if (from_column_ == 0 || rows < g_.m) pack_a(rows);
    for (int64_t block = 0; block < packed_columns_; block += blocks_.n)
      for (int64_t i = 0; i < rows; i += kTilePanel)
        for (int64_t j = block; j < std::min(block + blocks_.n, packed_columns_); j += kTilePanel)
          multiply_panel(strip, i, std::min<int64_t>(kTilePanel, rows - i), j, std::min<int64_t>(kTilePanel, packed_columns_ - j));
  }

  void multiply_panel(const GemmStrip<T>& strip, int64_t i, int64_t rows, int64_t j, int64_t columns) {
    const std::byte* a = a_ + i / kTilePanel * panel_bytes_;
    const std::byte* b = b_ + j / kTilePanel * panel_bytes_;
    float* c = strip.at(from_row_ + i, from_column_ + j);
    const int64_t c_stride = strip.stride();
    const bool fits = a_fits_[static_cast<size_t>(i / kTilePanel)] && b_fits_[static_cast<size_t>(j / kTilePanel)];
    const bool add = strip.adds(from_k_);
    const float* bias = strip.bias(from_column_ + j, from_k_);
    const TileStart start{bias, 0};
    if (rows % kTileRows == 0 && columns % kTileRows == 0 && fits && !add)
      return multiply_tile_panels<T>(rows, columns, tile_steps(depth_), a, b, start, c, c_stride);
    if (add)  // C is no longer in a near cache: it comes while the sum is taken
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t half = 0; half < kTilePanel; half += kTileRows) __builtin_prefetch(c + r * c_stride + half, 1, 2);
    // At the edges tiles are larger than C. A block's sum is taken before it is added: one rounding at the size of C for each block.
    alignas(64) float sums[kTilePanel * kTilePanel];
    multiply_tile_panels<T>(rows, columns, tile_steps(depth_), a, b, start, sums, kTilePanel);
    if (!fits) multiply_one_by_one(i, rows, j, columns, bias, sums);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = c + r * c_stride;
      const float* from = sums + r * kTilePanel;
      if (!add)
        std::memcpy(row, from, static_cast<size_t>(columns) * sizeof(float));
      else if (columns == kTilePanel)
        for (int64_t s = 0; s < kTilePanel; ++s) row[s] += from[s];
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
      return static_cast<float>(g_.b.data[(from_k_ + q) * g_.b.row_stride + (from_strip_ + from_column_ + j + s) * g_.b.column_stride]);
    };
    const auto fits = [&](const auto& element, int64_t index) {
      bool all = true;
      for (int64_t q = 0; q < depth_; ++q) all = all && std::isfinite(rounded_to_piece(element(index, q)));
      return all;
    };
    std::array<bool, kTilePanel> column_fits;
    for (int64_t s = 0; s < columns; ++s) column_fits[static_cast<size_t>(s)] = fits(b, s);
    for (int64_t r = 0; r < rows; ++r) {
      const bool row_fits = fits(a, r);
      for (int64_t s = 0; s < columns; ++s) {
        if (row_fits && column_fits[static_cast<size_t>(s)]) continue;
        float sum = bias == nullptr ? 0 : bias[s];
        for (int64_t q = 0; q < depth_; ++q) sum = std::fma(a(r, q), b(s, q), sum);
        sums[r * kTilePanel + s] = sum;
      }
    }
  }

  const Gemm<T>& g_;
  const Layout<T> layout_;
  const Blocks blocks_;
  std::byte *a_, *b_;
  float *bias_, *sums_;
  // A strip of columns, and the block of k and rows that is multiplied.
  int64_t from_strip_ = 0, from_k_ = 0, depth_ = 0, from_column_ = 0, packed_columns_ = 0, from_row_ = 0;
  int64_t panel_bytes_ = 0;
  std::array<bool, kLargestBlock / kTilePanel> a_fits_;
  std::array<bool, kStripN / kTilePanel> b_fits_;
};

}  // namespace

template <class T>
size_t gemm_tiles_scratch_bytes(int64_t m, int64_t n, int64_t k) {
  return static_cast<size_t>(Layout<T>(m, n, k).total());
}

template <class T>
void gemm_tiles(const Gemm<T>& g, std::byte* scratch) {
  if (g.m > 0 && g.n > 0) Product<T>(g, scratch).run();
}

#define RZ_INSTANTIATE(T)                                                 \
  template size_t gemm_tiles_scratch_bytes<T>(int64_t, int64_t, int64_t); \
  template void gemm_tiles<T>(const Gemm<T>&, std::byte*);
RZ_INSTANTIATE(float)
RZ_INSTANTIATE(bf16)
RZ_INSTANTIATE(f16)
#undef RZ_INSTANTIATE

}  // namespace rz::cpu
