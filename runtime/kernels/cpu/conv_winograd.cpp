// Vocabulary:
//   tile      4 x 4 pixels of what is read, 2 x 2 of the result; neighbouring tiles are 2 pixels apart; numbered through all images
//   element   one of the 16 of a transformed tile: each is a matrix product of its own
//   strip     up to kConvRows neighbouring tiles: the rows of a micro tile
//   panel     kMicroColumns channels of the result
//
//   forward, data gradient   Y = A^T [ (G g G^T) (B^T d B) ] A, summed over the channels read
//   weight gradient          g = G^T [ (A dY A^T) (B^T d B) ] G, summed over all tiles
//
//         | 1  0 -1  0 |        |  1    0    0  |
//   B^T = | 0  1  1  0 |    G = | 1/2  1/2  1/2 |    A^T = | 1  1  1  0 |
//         | 0 -1  1  0 |        | 1/2 -1/2  1/2 |          | 0  1 -1 -1 |
//         | 0  1  0 -1 |        |  0    0    1  |
//
// Transforms work on vectors of channels. A block of tiles is transformed, multiplied and transformed back while it is in the L2 cache.
#include "runtime/kernels/cpu/conv_winograd.h"

#include <algorithm>

#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/conv_micro.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_pack.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

namespace {

constexpr int64_t kElements = 16;
constexpr int64_t kTaps = 9;
constexpr int64_t kLeastChannels = 16;              // with fewer, transforms take longer than the products that they save
constexpr int64_t kMultiplyAddsPerPiece = 1 << 17;  // below this a thread is not worth waking
constexpr int64_t kBlockBytes = 768 << 10;          // of a transformed block: the L2 cache holds a panel of weights and its results, too
constexpr int64_t kLeastBlockStrips = 3;            // fewer would read the weights too often
constexpr int64_t kTilesPerSum = 64;                // of the weight gradient: its order depends on this
constexpr int64_t kSumRows = 128;                   // most channels of the gradient and
constexpr int64_t kSumColumns = 64;                 // of the image whose sums are kept in the cache

// A vector of channels, or the first `count` of one: zeros stand for the others.
template <bool kWhole, class T, class C>
[[gnu::always_inline]] inline Lanes<C> load_channels(const T* from, int64_t count) {
  if constexpr (kWhole) return load_lanes(from);
  C wide[kLanes<C>] = {};
  load_run(from, 1, wide, count);
  return load_lanes(wide);
}

template <bool kWhole, class T, class C>
[[gnu::always_inline]] inline void store_channels(Lanes<C> value, T* to, int64_t count, bool accumulate) {
  if constexpr (kWhole && std::is_same_v<T, C>) {
    store_lanes(to, accumulate ? load_lanes(to) + value : value);
  } else {
    C wide[kLanes<C>];
    store_lanes(wide, value);
    store_run(wide, to, 1, kWhole ? kLanes<C> : count, accumulate);
  }
}

// body(whole, first, count) for the vectors of channels.
template <class C>
[[gnu::always_inline]] inline void each_vector(int64_t channels, auto&& body) {
  int64_t c = 0;
  for (; c + kLanes<C> <= channels; c += kLanes<C>) body(std::true_type{}, c, int64_t{kLanes<C>});
  if (c < channels) body(std::false_type{}, c, channels - c);
}

// The images that tiles are read from or written to: tile (i, j) of an image begins at row first_row + 2 i, column first_column + 2 j.
template <class T>
struct TiledImages {
  T* data;
  int64_t height, width, channels;
  int64_t first_row, first_column;
  int64_t tile_rows, tile_columns;

  // Of the kExtent x kExtent pixels of a tile; null outside the image.
  template <int kExtent>
  void locate(int64_t tile, T* outside, T* (&pixel)[kExtent * kExtent]) const {
    const int64_t image = tile / (tile_rows * tile_columns), i = tile / tile_columns % tile_rows, j = tile % tile_columns;
    const int64_t row = first_row + 2 * i, column = first_column + 2 * j;
    const int64_t first = (image * height + row) * width + column;
    for (int64_t r = 0; r < kExtent; ++r)
      for (int64_t q = 0; q < kExtent; ++q) {
        const bool inside = row + r >= 0 && row + r < height && column + q >= 0 && column + q < width;
        pixel[r * kExtent + q] = inside ? data + (first + r * width + q) * channels : outside;
      }
  }
};

// V = B^T d B of one vector of channels, from `c` on.
template <bool kWhole, class T, class C>
[[gnu::always_inline]] inline void transform_vector(const T* const (&pixel)[16], int64_t c, int64_t count, Lanes<C> (&v)[16]) {
  Lanes<C> d[16], t[16];
#pragma GCC unroll 16
  for (int e = 0; e < 16; ++e) d[e] = load_channels<kWhole, T, C>(pixel[e] + c, count);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = d[j] - d[8 + j];
    t[4 + j] = d[4 + j] + d[8 + j];
    t[8 + j] = d[8 + j] - d[4 + j];
    t[12 + j] = d[4 + j] - d[12 + j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = t[i] - t[i + 2];
    v[i + 1] = t[i + 1] + t[i + 2];
    v[i + 2] = t[i + 2] - t[i + 1];
    v[i + 3] = t[i + 1] - t[i + 3];
  }
}

// A dY A^T of one vector of channels, from `c` on.
template <bool kWhole, class T, class C>
[[gnu::always_inline]] inline void transform_vector(const T* const (&pixel)[4], int64_t c, int64_t count, Lanes<C> (&v)[16]) {
  Lanes<C> d[4], t[8];
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) d[e] = load_channels<kWhole, T, C>(pixel[e] + c, count);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    t[j] = d[j];
    t[2 + j] = d[j] + d[2 + j];
    t[4 + j] = d[j] - d[2 + j];
    t[6 + j] = -d[2 + j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[4 * i] = t[2 * i];
    v[4 * i + 1] = t[2 * i] + t[2 * i + 1];
    v[4 * i + 2] = t[2 * i] - t[2 * i + 1];
    v[4 * i + 3] = -t[2 * i + 1];
  }
}

// The channels first .. first + channels of a tile, transformed: an element is element_step behind the one before, a vector of channels
// vector_step.
template <class T, class C, size_t kPixels>
void transform_tile(const T* const (&pixel)[kPixels], int64_t first, int64_t channels, C* to, int64_t element_step, int64_t vector_step) {
  each_vector<C>(
      channels, [&](auto whole, int64_t c, int64_t count) __attribute__((always_inline)) {
        Lanes<C> v[16];
        transform_vector<decltype(whole)::value, T, C>(pixel, first + c, count, v);
        C* at = to;
#pragma GCC unroll 16
        for (int e = 0; e < 16; ++e, at += element_step) store_lanes(at, v[e]);
        to += vector_step;
      });
}

// Y = A^T M A; m[e] lies `step` behind m[e - 1].
template <class C>
[[gnu::always_inline]] inline void transform_result(const C* m, int64_t step, Lanes<C> (&y)[4]) {
  Lanes<C> t[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Lanes<C> m0 = load_lanes(m + j * step), m1 = load_lanes(m + (4 + j) * step);
    const Lanes<C> m2 = load_lanes(m + (8 + j) * step), m3 = load_lanes(m + (12 + j) * step);
    t[j] = m0 + m1 + m2;
    t[4 + j] = m1 - m2 - m3;
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = t[4 * i] + t[4 * i + 1] + t[4 * i + 2];
    y[2 * i + 1] = t[4 * i + 1] - t[4 * i + 2] - t[4 * i + 3];
  }
}

// U = G g G^T.
template <class C>
[[gnu::always_inline]] inline void transform_weights(const Lanes<C> (&g)[9], Lanes<C> (&u)[16]) {
  const C half = C(0.5);
  Lanes<C> t[12];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Lanes<C> outer = g[j] + g[6 + j];
    t[j] = g[j];
    t[3 + j] = half * (outer + g[3 + j]);
    t[6 + j] = half * (outer - g[3 + j]);
    t[9 + j] = g[6 + j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Lanes<C> outer = t[3 * i] + t[3 * i + 2];
    u[4 * i] = t[3 * i];
    u[4 * i + 1] = half * (outer + t[3 * i + 1]);
    u[4 * i + 2] = half * (outer - t[3 * i + 1]);
    u[4 * i + 3] = t[3 * i + 2];
  }
}

// g = G^T M G; m[e] lies `step` behind m[e - 1].
template <class C>
[[gnu::always_inline]] inline void transform_sums(const C* m, int64_t step, Lanes<C> (&g)[9]) {
  const C half = C(0.5);
  Lanes<C> t[12];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Lanes<C> m0 = load_lanes(m + j * step), m1 = load_lanes(m + (4 + j) * step);
    const Lanes<C> m2 = load_lanes(m + (8 + j) * step), m3 = load_lanes(m + (12 + j) * step);
    const Lanes<C> sum = half * (m1 + m2);
    t[j] = m0 + sum;
    t[4 + j] = half * (m1 - m2);
    t[8 + j] = sum + m3;
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Lanes<C> sum = half * (t[4 * i + 1] + t[4 * i + 2]);
    g[3 * i] = t[4 * i] + sum;
    g[3 * i + 1] = half * (t[4 * i + 1] - t[4 * i + 2]);
    g[3 * i + 2] = sum + t[4 * i + 3];
  }
}

// Forward pass or data gradient: `channels` are read and `result_channels` written.
template <class T>
struct Filter {
  TiledImages<const T> from;
  TiledImages<T> to;
  int64_t images;
  const compute_t<T>* bias;
  ConvActivation activation;
  bool accumulate;

  int64_t tiles() const { return images * to.tile_rows * to.tile_columns; }
};

// The transformed weights: [panel][element][channel read][kMicroColumns]. Tap t of channel k read and channel o of the result is
// weight[o * o_step + k * k_step + t * tap_step]; one of o_step and k_step is 1.
template <class T>
Tensor transformed_weights(const T* weight, int64_t channels, int64_t result_channels, int64_t o_step, int64_t k_step, int64_t tap_step) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t panels = ceil_divide(result_channels, kColumns), blocks = ceil_divide(channels, lanes);
  const Tensor packed = Tensor::empty({panels, kElements, channels, kColumns}, dtype_of<C>, Category::workspace, "convolution panels");
  C* to = packed.data<C>();
  // Squares of channels read x channels of the result.
  parallel_for(panels * blocks, std::max<int64_t>(1, (1 << 14) / (kElements * lanes * kColumns)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / blocks, k = item % blocks * lanes, ks = std::min(lanes, channels - k);
      for (int64_t v = 0; v < kMicroVectors; ++v) {
        const int64_t o = panel * kColumns + v * lanes, os = std::clamp<int64_t>(result_channels - o, 0, lanes);
        Lanes<C> square[kTaps][lanes] = {};
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const T* from = weight + o * o_step + k * k_step + tap * tap_step;
          if (o_step == 1) {
            for (int64_t p = 0; p < ks; ++p)
              square[tap][p] =
                  os == lanes ? load_channels<true, T, C>(from + p * k_step, os) : load_channels<false, T, C>(from + p * k_step, os);
          } else {
            for (int64_t i = 0; i < os; ++i)
              square[tap][i] =
                  ks == lanes ? load_channels<true, T, C>(from + i * o_step, ks) : load_channels<false, T, C>(from + i * o_step, ks);
            transpose<C>(square[tap]);
          }
        }
        for (int64_t p = 0; p < ks; ++p) {
          Lanes<C> g[kTaps], u[kElements];
#pragma GCC unroll 9
          for (int tap = 0; tap < kTaps; ++tap) g[tap] = square[tap][p];
          transform_weights<C>(g, u);
#pragma GCC unroll 16
          for (int64_t e = 0; e < kElements; ++e)
            store_lanes(to + ((panel * kElements + e) * channels + k + p) * kColumns + v * lanes, u[e]);
        }
      }
    }
  });
  return packed;
}

// The products of a tile, [element][kMicroColumns], transformed and written: `columns` channels of the result from `first` on.
template <class T>
void write_tile(const Filter<T>& filter, int64_t tile, int64_t first, int64_t columns, const compute_t<T>* products) {
  using C = compute_t<T>;
  T* pixel[4];
  filter.to.template locate<2>(tile, nullptr, pixel);
  const bool rectified = filter.activation == ConvActivation::relu, accumulate = filter.accumulate;
  const C* const added = filter.bias == nullptr ? nullptr : filter.bias + first;
  each_vector<C>(
      columns, [&](auto whole, int64_t c, int64_t count) __attribute__((always_inline)) {
        Lanes<C> y[4];
        transform_result<C>(products + c, kMicroColumns<C>, y);
        const Lanes<C> bias = added == nullptr ? Lanes<C>{} : load_lanes(added + c);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          if (pixel[p] == nullptr) continue;
          Lanes<C> value = y[p] + bias;
          if (rectified) value = value < C(0) ? Lanes<C>{} : value;  // a NaN stays
          store_channels<decltype(whole)::value, T, C>(value, pixel[p] + first + c, count, accumulate);
        }
      });
}

template <class T>
void run(const Filter<T>& filter, const Tensor& panels) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr int64_t lanes = kLanes<C>;
  constexpr int64_t kResultStep = kElements * kColumns + lanes;  // of a tile's products; no power of two, for the cache
  const int64_t channels = filter.from.channels, result_channels = filter.to.channels;
  const int64_t tiles = filter.tiles(), strips = ceil_divide(tiles, kConvRows), blocks = ceil_divide(channels, lanes);
  const int64_t strip_work = kConvRows * kElements * channels * result_channels;
  const int64_t pieces = std::clamp<int64_t>(strips / ceil_divide(kMultiplyAddsPerPiece, strip_work), 1, thread_count());
  // A strip is [element][block of channels][tile][lane]: the micro-kernel finds the tiles of a channel at fixed distances.
  const int64_t strip_elements = kElements * blocks * kConvRows * lanes;
  const int64_t most_strips = std::max(kLeastBlockStrips, kBlockBytes / (strip_elements * static_cast<int64_t>(sizeof(C))));
  const int64_t block_strips = std::min(most_strips, ceil_divide(strips, pieces));
  const int64_t result_elements = block_strips * kConvRows * kResultStep, zeros = blocks * lanes;
  const int64_t scratch_elements = block_strips * strip_elements + result_elements + zeros;
  const Tensor scratch = Tensor::empty({pieces, scratch_elements}, dtype_of<C>, Category::workspace, "convolution tiles");
  C* const scratch_data = scratch.data<C>();
  const C* const weights = panels.data<C>();

  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      C* const transformed = scratch_data + piece * scratch_elements;
      C* const results = transformed + block_strips * strip_elements;
      C* const zero = results + result_elements;
      std::fill_n(zero, zeros, C(0));
      const auto first_tile = [&](int64_t strip) { return tiles * strip / strips; };
      const int64_t strip_end = strips * (piece + 1) / pieces;
      for (int64_t block = strips * piece / pieces; block < strip_end; block += block_strips) {
        const int64_t block_end = std::min(block + block_strips, strip_end);
        for (int64_t strip = block; strip < block_end; ++strip) {
          C* const to = transformed + (strip - block) * strip_elements;
          const int64_t begin = first_tile(strip), count = first_tile(strip + 1) - begin;
          for (int64_t i = 0; i < count; ++i) {
            const T* pixel[16];
            filter.from.template locate<4>(begin + i, reinterpret_cast<const T*>(zero), pixel);
            transform_tile(pixel, 0, channels, to + i * lanes, blocks * kConvRows * lanes, kConvRows * lanes);
          }
        }
        for (int64_t o = 0; o < result_channels; o += kColumns) {
          const int columns = static_cast<int>(std::min(kColumns, result_channels - o));
          for (int64_t e = 0; e < kElements; ++e) {
            const C* const panel = weights + (o / kColumns * kElements + e) * channels * kColumns;
            for (int64_t strip = block; strip < block_end; ++strip) {
              const int64_t begin = first_tile(strip), count = first_tile(strip + 1) - begin;
              tile_kernel_for<C>(static_cast<int>(count), columns)(
                  channels, transformed + (strip - block) * strip_elements + e * blocks * kConvRows * lanes, panel,
                  results + (begin - first_tile(block)) * kResultStep + e * kColumns, kResultStep);
            }
          }
          for (int64_t tile = first_tile(block); tile < first_tile(block_end); ++tile)
            write_tile(filter, tile, o, columns, results + (tile - first_tile(block)) * kResultStep);
        }
      }
    }
  });
}

// How the sums of a weight gradient are shared out: rows are channels of the gradient, columns of the image.
struct SumGroups {
  int64_t row_groups, column_groups;
};

// The cut that ends first: a group transforms its channels of both images by itself.
SumGroups sum_groups(int64_t row_units, int64_t row_unit, int64_t panels, int64_t panel_columns) {
  const int64_t threads = thread_count();
  SumGroups best{};
  int64_t least = -1;
  for (int64_t r = ceil_divide(row_units * row_unit, kSumRows); r <= row_units; ++r)
    for (int64_t c = ceil_divide(panels * panel_columns, kSumColumns); c <= panels; ++c) {
      const int64_t rows = ceil_divide(row_units, r) * row_unit, columns = ceil_divide(panels, c) * panel_columns;
      const int64_t time = ceil_divide(r * c, threads) * (8 * rows * columns + 18 * rows + 28 * columns);
      if (least < 0 || time < least) least = time, best = {r, c};
      if (r * c >= threads) break;
    }
  return best;
}

template <class T>
void run_weight_gradient(const TiledImages<const T>& grad, const TiledImages<const T>& x, int64_t tiles, T* dweight, bool accumulate) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t units = ceil_divide(grad.channels, lanes), panels = ceil_divide(x.channels, kColumns);
  const SumGroups groups = sum_groups(units, lanes, panels, kColumns);
  const int64_t items = groups.row_groups * groups.column_groups;
  const int64_t work = tiles * kElements * grad.channels * x.channels;
  const int64_t pieces = std::clamp<int64_t>(std::min(items, work / kMultiplyAddsPerPiece), 1, thread_count());
  const int64_t rows_most = ceil_divide(units, groups.row_groups) * lanes;
  const int64_t columns_most = ceil_divide(panels, groups.column_groups) * kColumns;
  const int64_t block = std::min(kTilesPerSum, tiles);
  // Transformed tiles are [element][tile][channel] of the gradient and [element][panel][tile][kMicroColumns] of the image; a vector more,
  // lest the steps be powers of two, which share lines of the cache.
  const int64_t grad_step = rows_most + lanes;  // of a tile
  const int64_t grad_element_step = block * grad_step + lanes, image_element_step = block * columns_most + lanes;
  const int64_t grad_elements = kElements * grad_element_step, image_elements = kElements * image_element_step;
  const int64_t sum_elements = kElements * rows_most * columns_most, zeros = round_up(std::max(grad.channels, x.channels), lanes);
  const int64_t scratch_elements = grad_elements + image_elements + sum_elements + zeros;
  const Tensor scratch = Tensor::empty({pieces, scratch_elements}, dtype_of<C>, Category::workspace, "convolution tiles");
  C* const scratch_data = scratch.data<C>();

  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      C* const transformed_grad = scratch_data + piece * scratch_elements;
      C* const transformed_image = transformed_grad + grad_elements;
      C* const sums = transformed_image + image_elements;
      C* const zero = sums + sum_elements;
      std::fill_n(zero, zeros, C(0));
      const T* const outside = reinterpret_cast<const T*>(zero);
      for (int64_t item = items * piece / pieces; item < items * (piece + 1) / pieces; ++item) {
        const int64_t r = item / groups.column_groups, c = item % groups.column_groups;
        const int64_t row = units * r / groups.row_groups * lanes;
        const int64_t rows = std::min(units * (r + 1) / groups.row_groups * lanes, grad.channels) - row;
        const int64_t column = panels * c / groups.column_groups * kColumns;
        const int64_t columns = std::min(panels * (c + 1) / groups.column_groups * kColumns, x.channels) - column;
        const int64_t strips = ceil_divide(rows, kMicroRows);
        for (int64_t tile = 0; tile < tiles; tile += block) {
          const int64_t count = std::min(block, tiles - tile);
          for (int64_t i = 0; i < count; ++i) {
            const T* pixel[16];
            const T* grad_pixel[4];
            x.template locate<4>(tile + i, outside, pixel);
            for (int64_t at = 0; at < columns; at += kColumns)
              transform_tile(pixel, column + at, std::min(kColumns, columns - at), transformed_image + at * block + i * kColumns,
                             image_element_step, lanes);
            grad.template locate<2>(tile + i, outside, grad_pixel);
            transform_tile(grad_pixel, row, rows, transformed_grad + i * grad_step, grad_element_step, lanes);
          }
          const Epilogue<C> epilogue{1, tile > 0, nullptr};
          const int64_t no_offset = 0;
          for (int64_t e = 0; e < kElements; ++e)
            for (int64_t at = 0; at < columns; at += kColumns)
              for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t top = rows * strip / strips;
                const PixelLines<C> lines{1,
                                          count,
                                          transformed_grad + e * grad_element_step + top,
                                          grad_step,
                                          transformed_image + e * image_element_step + at * block,
                                          kColumns,
                                          &no_offset};
                const int width = static_cast<int>(std::min(kColumns, round_up(columns - at, lanes)));
                weight_kernel_for<C>(static_cast<int>(rows * (strip + 1) / strips - top), width)(
                    lines, sums + (e * rows_most + top) * columns_most + at, columns_most, width, epilogue);
              }
        }
        for (int64_t i = 0; i < rows; ++i)
          each_vector<C>(
              columns, [&](auto whole, int64_t at, int64_t count) __attribute__((always_inline)) {
                Lanes<C> g[kTaps];
                transform_sums<C>(sums + i * columns_most + at, rows_most * columns_most, g);
#pragma GCC unroll 9
                for (int64_t tap = 0; tap < kTaps; ++tap)
                  store_channels<decltype(whole)::value, T, C>(g[tap], dweight + ((row + i) * kTaps + tap) * x.channels + column + at,
                                                               count, accumulate);
              });
      }
    }
  });
}

}  // namespace

bool winograd_pays(const ConvSizes& s, int64_t rows, int64_t columns) {
  if (s.kernel_h != 3 || s.kernel_w != 3 || s.window.stride != 1 || s.in < kLeastChannels || s.out < kLeastChannels) return false;
  // Tiles at the lower and right edge may be half empty: 3 x 3 results still pay, a line of single pixels does not.
  return 4 * kTaps * rows * columns >= 5 * kElements * ceil_divide(rows, 2) * ceil_divide(columns, 2);
}

template <class T>
void winograd_forward(const ConvSizes& s, const T* x, const T* weight, const compute_t<T>* bias, ConvActivation activation, T* y) {
  const int64_t rows = ceil_divide(s.out_height, 2), columns = ceil_divide(s.out_width, 2);
  const Tensor panels = transformed_weights(weight, s.in, s.out, kTaps * s.in, 1, s.in);
  run<T>({.from = {x, s.height, s.width, s.in, -s.window.padding, -s.window.padding, rows, columns},
          .to = {y, s.out_height, s.out_width, s.out, 0, 0, rows, columns},
          .images = s.images,
          .bias = bias,
          .activation = activation,
          .accumulate = false},
         panels);
}

// dx = the gradient convolved with the weights turned by 180 degrees: pixel h sees rows h + padding - r of the gradient.
template <class T>
void winograd_data_gradient(const ConvSizes& s, const T* grad, const T* weight, T* dx, bool accumulate) {
  const int64_t rows = ceil_divide(s.height, 2), columns = ceil_divide(s.width, 2), first = s.window.padding - 2;
  const Tensor panels = transformed_weights(weight + (kTaps - 1) * s.in, s.out, s.in, 1, kTaps * s.in, -s.in);
  run<T>({.from = {grad, s.out_height, s.out_width, s.out, first, first, rows, columns},
          .to = {dx, s.height, s.width, s.in, 0, 0, rows, columns},
          .images = s.images,
          .bias = nullptr,
          .activation = ConvActivation::none,
          .accumulate = accumulate},
         panels);
}

template <class T>
void winograd_weight_gradient(const ConvSizes& s, const T* grad, const T* x, T* dweight, bool accumulate) {
  const int64_t rows = ceil_divide(s.out_height, 2), columns = ceil_divide(s.out_width, 2);
  run_weight_gradient<T>({grad, s.out_height, s.out_width, s.out, 0, 0, rows, columns},
                         {x, s.height, s.width, s.in, -s.window.padding, -s.window.padding, rows, columns}, s.images * rows * columns,
                         dweight, accumulate);
}

#define RZ_INSTANTIATE(T)                                                                                           \
  template void winograd_forward<T>(const ConvSizes&, const T*, const T*, const compute_t<T>*, ConvActivation, T*); \
  template void winograd_data_gradient<T>(const ConvSizes&, const T*, const T*, T*, bool);                          \
  template void winograd_weight_gradient<T>(const ConvSizes&, const T*, const T*, T*, bool);
RZ_INSTANTIATE(float)
RZ_INSTANTIATE(double)
RZ_INSTANTIATE(bf16)
RZ_INSTANTIATE(f16)
#undef RZ_INSTANTIATE

}  // namespace rz::cpu
