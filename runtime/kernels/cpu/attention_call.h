// What the forward and backward passes of attention share: sizes, tiles, masks, and reading and writing rows of strided tensors in
// the compute type, rotated on the way when the call asks for rotary positions.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/attention.h"
#include "runtime/kernels/cpu/attention_tile.h"

namespace rz::cpu {

inline constexpr int64_t kQueryTile = 48;  // a multiple of kBlockRows
inline constexpr int64_t kKeyTile = 128;   // a multiple of every panel width

struct AttentionSizes {
  int64_t batch, heads, kv_heads, queries, keys, width;
  int64_t group() const { return heads / kv_heads; }
  int64_t query_tiles() const { return (queries + kQueryTile - 1) / kQueryTile; }
};

// Rows of a [B, heads, rows, D] tensor with a contiguous last dimension.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t batch_step = 0, head_step = 0, row_step = 0;

  Rows() = default;
  explicit Rows(const Tensor& t)
      : data(t.data<std::remove_const_t<T>>()), batch_step(t.stride(0)), head_step(t.stride(1)), row_step(t.stride(2)) {}
  T* at(int64_t batch, int64_t head, int64_t row) const { return data + batch * batch_step + head * head_step + row * row_step; }
};

// Rotates one row by its position's angles (or back): see ops/rope.h. `angles` holds D/2 cosines, then D/2 sines.
template <class C>
inline void rotate_row(C* __restrict row, const C* __restrict angles, int64_t width, bool inverse) {
  const int64_t half = width / 2;
  const C sign = inverse ? C(-1) : C(1);
  for (int64_t i = 0; i < half; ++i) {
    const C cosine = angles[i];
    const C sine = sign * angles[half + i];
    const C low = row[i];
    const C high = row[half + i];
    row[i] = low * cosine - high * sine;
    row[half + i] = high * cosine + low * sine;
  }
}

// The call's rotation, or none.
template <class C>
struct Rotation {
  const C* table = nullptr;
  int64_t offset = 0;
  int64_t width = 0;

  Rotation() = default;
  Rotation(const AttentionCall& call, int64_t head_width) : offset(call.rope_offset), width(head_width) {
    if (call.rope.defined()) table = call.rope.data<C>();
  }
  void apply(C* row, int64_t token, bool inverse) const {
    if (table != nullptr) rotate_row(row, table + (offset + token) * width, width, inverse);
  }
};

// The keys that query `row` sees: [0, visible_keys).
inline int64_t visible_keys(const AttentionSizes& s, bool causal, int64_t row) {
  return causal ? std::clamp<int64_t>(row + 1 + s.keys - s.queries, 0, s.keys) : s.keys;
}

// to[rows][padded] = factor * from, rotated, zero beyond the width.
template <class C, class T>
void read_rows(const Rows<const T>& from, int64_t batch, int64_t head, int64_t first, int64_t rows, int64_t width, int64_t padded, C factor,
               const Rotation<C>& rotation, C* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict source = from.at(batch, head, first + r);
    C* __restrict row = to + r * padded;
    // In a fused projection the next head's row follows: fetch it for later, no hardware prefetcher sees such short runs coming.
    for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const std::byte*>(source + width) + byte, 0, 2);
    for (int64_t i = 0; i < width; ++i) row[i] = static_cast<C>(source[i]) * factor;
    for (int64_t i = width; i < padded; ++i) row[i] = C(0);
    rotation.apply(row, first + r, false);
  }
}

// to = or += factor * rows, rotated back; `rows` is changed.
template <class C, class T>
void write_rows(C* rows_data, int64_t padded, const Rows<T>& to, int64_t batch, int64_t head, int64_t first, int64_t rows, int64_t width,
                C factor, const Rotation<C>& rotation, bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    C* __restrict row = rows_data + r * padded;
    rotation.apply(row, first + r, true);
    T* __restrict target = to.at(batch, head, first + r);
    if (accumulate)
      for (int64_t i = 0; i < width; ++i) target[i] = static_cast<T>(static_cast<C>(target[i]) + row[i] * factor);
    else
      for (int64_t i = 0; i < width; ++i) target[i] = static_cast<T>(row[i] * factor);
  }
}

// panels[S/kPanel][padded][kPanel] = the transpose of rows[keys][padded], for keys a multiple of kPanel.
template <class C>
void transpose_into_panels(const C* rows, int64_t keys, int64_t padded, C* panels) {
  for (int64_t first = 0; first < keys; first += kPanel<C>, panels += padded * kPanel<C>)
    for (int64_t r = 0; r < kPanel<C>; r += kLanes<C>)
      for (int64_t d = 0; d < padded; d += kLanes<C>)
        transpose_square(rows + (first + r) * padded + d, padded, panels + d * kPanel<C> + r, kPanel<C>);
}

// Splits one allocation into 64-byte-aligned parts; made twice, first to count and then, with memory, to hand out.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  template <class C>
  C* take(int64_t elements) {
    C* part = base_ == nullptr ? nullptr : reinterpret_cast<C*>(base_ + used_);
    used_ += round_up(elements * static_cast<int64_t>(sizeof(C)), 64);
    return part;
  }
  int64_t used_bytes() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace rz::cpu
