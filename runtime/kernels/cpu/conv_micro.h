// The micro-kernels of convolution. All keep a tile of the result in vector registers and read their operands where they lie: an
// image row is used by every tap of the kernel, so that packing each use of it, as a matrix product does, would cost as much as the
// arithmetic when there are few channels.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "runtime/kernels/cpu/gemm_micro.h"

namespace rz::cpu {

// Neighbouring pixels of a tile: 28, 14 and 7 are whole tiles where the registers allow it.
#if defined(__AVX512F__)
inline constexpr int kConvRows = 14;
#else
inline constexpr int kConvRows = kMicroRows;
#endif

// Rows neighbouring pixels x Vectors of output channels: tile[i] = sum over p < k of image[offset[p] + i] * panel[p]. `panel` is
// k x kMicroColumns.
template <class C, int Rows, int Vectors>
void pixel_kernel(int64_t k, const C* __restrict image, const int32_t* __restrict offset, const C* __restrict panel, C* __restrict c,
                  int64_t c_stride, int columns, const Epilogue<C>& e) {
  Lanes<C> tile[Rows][Vectors] = {};
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    const C* a = image + offset[p];
    add_products(tile, panel, [a](int i) { return a[i]; });
    panel += kMicroColumns<C>;
  }
  store_tile<C, Rows, Vectors>(tile, c, c_stride, columns, e);
}

// Lines of pixels in two images: in `grad` a pixel is grad_step apart from the next and lines follow each other, in `image` a pixel
// is image_step apart and line l begins at line_offset[l].
template <class C>
struct PixelLines {
  int64_t lines, pixels;
  const C* grad;
  int64_t grad_step;
  const C* image;
  int64_t image_step;
  const int64_t* line_offset;
};

// Rows channels of the gradient x Vectors of the image's channels: tile[i] = sum over all pixels of grad[i] * image.
template <class C, int Rows, int Vectors>
void weight_kernel(const PixelLines<C>& lines, C* __restrict c, int64_t c_stride, int columns, const Epilogue<C>& e) {
  Lanes<C> tile[Rows][Vectors] = {};
  const C* a = lines.grad;
  for (int64_t l = 0; l < lines.lines; ++l) {
    const C* b = lines.image + lines.line_offset[l];
#pragma GCC unroll 2
    for (int64_t p = 0; p < lines.pixels; ++p) {
      add_products(tile, b, [a](int i) { return a[i]; });
      a += lines.grad_step;
      b += lines.image_step;
    }
  }
  store_tile<C, Rows, Vectors>(tile, c, c_stride, columns, e);
}

// Rows tiles of Winograd's filtering x Vectors of result channels: c[i] = sum over p < k of a[p / lanes][i][p % lanes] * panel[p]. `a` is
// [k / lanes][kConvRows][lanes], `panel` k x kMicroColumns.
template <class C, int Rows, int Vectors>
void tile_kernel(int64_t k, const C* __restrict a, const C* __restrict panel, C* __restrict c, int64_t c_stride) {
  constexpr int64_t lanes = kLanes<C>;
  Lanes<C> tile[Rows][Vectors] = {};
  for (int64_t block = 0; block < k; block += lanes) {
    const int64_t channels = k - block < lanes ? k - block : lanes;
#pragma GCC unroll 2
    for (int64_t p = 0; p < channels; ++p) {
      add_products(tile, panel, [from = a + p](int i) { return from[i * lanes]; });
      panel += kMicroColumns<C>;
    }
    a += kConvRows * lanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store_lanes<C>(c + i * c_stride + j * lanes, tile[i][j]);
  }
}

template <class C>
using PixelKernel = void (*)(int64_t, const C*, const int32_t*, const C*, C*, int64_t, int, const Epilogue<C>&);
template <class C>
using WeightKernel = void (*)(const PixelLines<C>&, C*, int64_t, int, const Epilogue<C>&);
template <class C>
using TileKernel = void (*)(int64_t, const C*, const C*, C*, int64_t);

namespace detail {
template <class C, int Vectors, size_t... Row>
constexpr std::array<PixelKernel<C>, sizeof...(Row)> pixel_kernels(std::index_sequence<Row...>) {
  return {pixel_kernel<C, static_cast<int>(Row) + 1, Vectors>...};
}
template <class C, int Vectors, size_t... Row>
constexpr std::array<WeightKernel<C>, sizeof...(Row)> weight_kernels(std::index_sequence<Row...>) {
  return {weight_kernel<C, static_cast<int>(Row) + 1, Vectors>...};
}
template <class C, int Vectors, size_t... Row>
constexpr std::array<TileKernel<C>, sizeof...(Row)> tile_kernels(std::index_sequence<Row...>) {
  return {tile_kernel<C, static_cast<int>(Row) + 1, Vectors>...};
}
}  // namespace detail

// The kernel for a tile of `rows` <= kConvRows (kMicroRows) and `columns` <= kMicroColumns.
template <class C>
PixelKernel<C> pixel_kernel_for(int rows, int columns) {
  static constexpr auto kNarrow = detail::pixel_kernels<C, 1>(std::make_index_sequence<kConvRows>());
  static constexpr auto kWide = detail::pixel_kernels<C, 2>(std::make_index_sequence<kConvRows>());
  const auto row = static_cast<size_t>(rows - 1);
  return columns <= kLanes<C> ? kNarrow[row] : kWide[row];
}
template <class C>
WeightKernel<C> weight_kernel_for(int rows, int columns) {
  static constexpr auto kNarrow = detail::weight_kernels<C, 1>(std::make_index_sequence<kMicroRows>());
  static constexpr auto kWide = detail::weight_kernels<C, 2>(std::make_index_sequence<kMicroRows>());
  const auto row = static_cast<size_t>(rows - 1);
  return columns <= kLanes<C> ? kNarrow[row] : kWide[row];
}
template <class C>
TileKernel<C> tile_kernel_for(int rows, int columns) {
  static constexpr auto kNarrow = detail::tile_kernels<C, 1>(std::make_index_sequence<kConvRows>());
  static constexpr auto kWide = detail::tile_kernels<C, 2>(std::make_index_sequence<kConvRows>());
  const auto row = static_cast<size_t>(rows - 1);
  return columns <= kLanes<C> ? kNarrow[row] : kWide[row];
}

}  // namespace rz::cpu
