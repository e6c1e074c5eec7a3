#include "runtime/kernels/cpu/elementwise_copy.h"

#include <algorithm>
#include <cstring>

#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/strided.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainBytes = 64 * 1024;
constexpr int64_t kTile = 32;

// Offsets of both operands at a flat position of the `rank` leading dimensions.
struct Offsets {
  int64_t from = 0;
  int64_t to = 0;
};
Offsets offsets_at(const IndexSpace& s, int rank, int64_t position) {
  Offsets o;
  for (int d = rank - 1; d >= 0; --d) {
    const auto u = static_cast<size_t>(d);
    const int64_t i = position % s.extents[u];
    position /= s.extents[u];
    o.from += i * s.operands[0].strides[u];
    o.to += i * s.operands[1].strides[u];
  }
  return o;
}

template <class T>
void transpose_tile(const T* __restrict from, int64_t from_stride, T* __restrict to, int64_t to_stride, int64_t rows, int64_t columns) {
  // to[r * to_stride + c] = from[c * from_stride + r]
  if (rows == kTile && columns == kTile) {
    T tile[kTile][kTile];
    for (int64_t c = 0; c < kTile; ++c)
      for (int64_t r = 0; r < kTile; ++r) tile[c][r] = from[c * from_stride + r];
    for (int64_t r = 0; r < kTile; ++r)
      for (int64_t c = 0; c < kTile; ++c) to[r * to_stride + c] = tile[c][r];
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[r * to_stride + c] = from[c * from_stride + r];
}

// The two last dimensions are (r, c): `from` is contiguous along r, `to` along c.
template <class T>
void copy_transposed(const IndexSpace& s, const T* from, T* to) {
  const auto r = static_cast<size_t>(s.rank - 2);
  const auto c = static_cast<size_t>(s.rank - 1);
  const int64_t row_tiles = (s.extents[r] + kTile - 1) / kTile;
  const int64_t outer = s.numel / (s.extents[r] * s.extents[c]);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / static_cast<int64_t>(sizeof(T)) / (kTile * s.extents[c]));
  parallel_for(outer * row_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Offsets o = offsets_at(s, s.rank - 2, i / row_tiles);
      const int64_t row = i % row_tiles * kTile;
      const int64_t rows = std::min(kTile, s.extents[r] - row);
      for (int64_t column = 0; column < s.extents[c]; column += kTile)
        transpose_tile(from + o.from + row + column * s.operands[0].strides[c], s.operands[0].strides[c],
                       to + o.to + row * s.operands[1].strides[r] + column, s.operands[1].strides[r], rows,
                       std::min(kTile, s.extents[c] - column));
    }
  });
}

template <class T>
void copy_runs(const IndexSpace& s, const T* from, T* to) {
  const auto last = static_cast<size_t>(std::max(0, s.rank - 1));
  const int64_t inner = s.inner();
  const int64_t from_stride = s.rank == 0 ? 1 : s.operands[0].strides[last];
  const int64_t to_stride = s.rank == 0 ? 1 : s.operands[1].strides[last];
  parallel_for(s.numel, kGrainBytes / static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t start = i % inner;
      const int64_t n = std::min(inner - start, end - i);
      const Offsets o = offsets_at(s, s.rank - 1, i / inner);
      const T* x = from + o.from + start * from_stride;
      T* y = to + o.to + start * to_stride;
      if (from_stride == 1 && to_stride == 1)
        std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
      else if (from_stride == 0 && to_stride == 1)
        std::fill_n(y, n, *x);
      else
        for (int64_t k = 0; k < n; ++k) y[k * to_stride] = x[k * from_stride];
      i += n;
    }
  });
}

// The order of dimensions in which `out` is walked with falling strides: writes then go forward.
Tensor permuted(const Tensor& t, const Tensor& by) {
  std::array<int, Shape::kMaxRank> order{};
  for (int d = 0; d < t.rank(); ++d) order[static_cast<size_t>(d)] = d;
  std::stable_sort(order.begin(), order.begin() + t.rank(), [&](int a, int b) { return by.stride(a) > by.stride(b); });
  return t.view_permute(std::span<const int>(order.data(), static_cast<size_t>(t.rank())));
}

template <class T>
void copy_typed(const Tensor& x, const Tensor& out) {
  const Tensor from_view = permuted(x, out);
  const Tensor to_view = permuted(out, out);
  const Tensor* tensors[] = {&from_view, &to_view};
  IndexSpace s = make_index_space(to_view.shape(), tensors);
  const T* from = reinterpret_cast<const T*>(s.operands[0].data);
  T* to = reinterpret_cast<T*>(s.operands[1].data);
  const auto last = static_cast<size_t>(std::max(0, s.rank - 1));
  if (s.rank >= 2 && s.operands[1].strides[last] == 1 && s.operands[0].strides[last] != 1 && s.operands[0].strides[last] != 0) {
    for (size_t d = 0; d < last; ++d) {
      if (s.operands[0].strides[d] != 1 || s.extents[d] < 4) continue;
      // Move the dimension along which x is contiguous next to the last one.
      std::rotate(s.extents.begin() + static_cast<std::ptrdiff_t>(d), s.extents.begin() + static_cast<std::ptrdiff_t>(d) + 1,
                  s.extents.begin() + static_cast<std::ptrdiff_t>(last));
      for (auto& o : s.operands)
        std::rotate(o.strides.begin() + static_cast<std::ptrdiff_t>(d), o.strides.begin() + static_cast<std::ptrdiff_t>(d) + 1,
                    o.strides.begin() + static_cast<std::ptrdiff_t>(last));
      return copy_transposed<T>(s, from, to);
    }
  }
  copy_runs<T>(s, from, to);
}

}  // namespace

void copy_same_type(const Tensor& x, Tensor& out) {
  if (out.numel() == 0) return;
  // Only the size of an element matters.
  switch (size_bytes(out.dtype())) {
    case 1:
      return copy_typed<uint8_t>(x, out);
    case 2:
      return copy_typed<uint16_t>(x, out);
    case 4:
      return copy_typed<uint32_t>(x, out);
    default:
      return copy_typed<uint64_t>(x, out);
  }
}

}  // namespace rz::cpu
