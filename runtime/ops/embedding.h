// Looking up rows of a table, differentiable in the table.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::ops {

// weight[ids]: ids [..] of i32 or i64, weight [V, D] -> [.., D]. An id outside [0, V) is an rz::Error naming its value and
// position. Backward adds rows straight into the gradient of `weight`; rows that share an id are summed in the order of their
// positions, in float32 for 16-bit types: the same bits for any number of threads.
Tensor embedding(const Tensor& ids, const Tensor& weight);

}  // namespace rz::ops
