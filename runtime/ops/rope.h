// Rotary position embedding. Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021, equation 34, in
// the layout of Llama ("rotate half"): element i is paired with element i + D/2, not with its neighbour:
//   y[i]       = x[i] cos(a_i) - x[i + D/2] sin(a_i)
//   y[i + D/2] = x[i + D/2] cos(a_i) + x[i] sin(a_i)        a_i = position * base^(-2i/D),  i < D/2
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz::ops {

// Cosines and sines of positions [0, positions), computed in double and rounded once. Make one per model and share it.
struct RopeTable {
  Tensor values;  // [positions, D]: D/2 cosines, then D/2 sines; f32, or f64 for f64 models
  int64_t positions() const { return values.size(0); }
  int64_t head_dim() const { return values.size(1); }
};

// head_dim must be even. The memory counts as `category`.
RopeTable make_rope_table(int64_t positions, int64_t head_dim, double base = 10000.0, DType dtype = DType::f32,
                          Category category = Category::workspace);

// Rotates x [B, T, H, D] (a strided view is read in place when its last dimension is contiguous): token t has the position
// `offset` + t. The result is contiguous. Backward rotates the other way and keeps nothing but the table. rz::Error when a
// position is outside the table, the widths differ, or the table is not of x's compute type.
Tensor rope(const Tensor& x, const RopeTable& table, int64_t offset = 0);

}  // namespace rz::ops
