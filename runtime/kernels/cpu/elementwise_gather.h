// Indexed reads and sums along one dimension. All tensors may be strided; contracts in kernels/elementwise.h.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::cpu {

void gather_along(const Tensor& x, int dim, const Tensor& index, Tensor& out);
void scatter_add_along(const Tensor& x, int dim, const Tensor& index, Tensor& out);

}  // namespace rz::cpu
