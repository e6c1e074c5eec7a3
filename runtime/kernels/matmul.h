// Matrix products. docs/adr/0001-matrix-products.md says how they are computed and what their bits depend on.
#pragma once

#include "runtime/core/tensor.h"

namespace rz {

struct MatmulOptions {
  bool transpose_a = false;  // use the transpose of a's last two dimensions
  bool transpose_b = false;
  bool accumulate = false;  // add to `out` instead of overwriting it
  double alpha = 1;         // factor of the product
  Tensor bias{};            // [n], added to every row of the product; not together with accumulate
};

class MatmulKernels {
 public:
  virtual ~MatmulKernels() = default;

  // out[..., m, n] (+)= alpha op(a)[..., m, k] op(b)[..., k, n] (+ bias). Leading dimensions broadcast; all tensors may be strided
  // in any way (read where they lie, without copies) and share one floating-point type. f32, f16, bf16 sum in float32, f64 in double.
  // Each element's sum over k is taken in an order that depends on k alone: not on the position of the row, the other rows, the batch,
  // strides or the thread count.
  virtual void matmul(const Tensor& a, const Tensor& b, Tensor& out, const MatmulOptions& options = {}) = 0;
};

}  // namespace rz
