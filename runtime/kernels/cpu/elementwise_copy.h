// Copies between tensors of one element type and any strides.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::cpu {

// out = x: same shape and type. Rows are moved by memcpy, transposes in square tiles, the rest element by element.
void copy_same_type(const Tensor& x, Tensor& out);

}  // namespace rz::cpu
