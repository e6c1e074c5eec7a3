// The adding loops of the collectives. Elementwise and exact in order: lane i of the result depends on lane i of the inputs
// alone, so vector width never changes a bit. NaN propagates through max and min; integer sums wrap.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

#include "comm/types.h"
#include "runtime/core/dtype.h"

namespace rz::comm {

// out[i] = a[i] (op) b[i]. `out` may be `b`. 16-bit floats are added in float32 and rounded once. mean adds like sum.
void combine(DType dtype, ReduceOp op, void* out, const void* a, const void* b, size_t count);

// data[i] /= divisor, floating types only.
void divide(DType dtype, void* data, size_t count, int divisor);

// out[i] = inputs[0][i] (op) inputs[1][i] (op) ..., from left to right; 16-bit floats are rounded once, at the end, and
// mean divides before that. `out` may be one of the inputs.
void combine_in_order(DType dtype, ReduceOp op, void* out, std::span<const std::byte* const> inputs, size_t count);

// The sum, in `order`, of one rank's chunk: inputs[k] is what comes k-th, and every one of `outputs` gets the result, with the roundings
// and the mean of the message path's algorithms (comm/ring.h). Outputs may be inputs. At least two inputs.
void combine_all(DType dtype, ReduceOp op, Order order, std::span<std::byte* const> outputs, std::span<const std::byte* const> inputs,
                 size_t count);

// What a rank keeps for itself: nothing to copy where it lies in place already.
inline void copy_unless_same(std::byte* to, const std::byte* from, size_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace rz::comm
