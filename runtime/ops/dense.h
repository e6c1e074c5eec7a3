// For ops whose kernels want contiguous memory: views are copied, contiguous tensors pass through.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/backend.h"

namespace rz::ops {

// x itself when contiguous, else a contiguous copy of its elements, outside the graph. A workspace copy must not
// outlive the op; for what backward keeps, give the ambient category instead.
inline Tensor to_dense(const Tensor& x, Category category = Category::workspace) {
  if (x.is_contiguous()) return x.view_alias();
  Tensor copy = Tensor::empty(x.shape(), x.dtype(), category, "contiguous copy");
  backend(x.device()).elementwise->copy(x, copy);
  return copy;
}

// The same as a matrix of rows: all dimensions but the last flattened into one.
inline Tensor to_rows(const Tensor& x, Category category = Category::workspace) {
  const int64_t width = x.size(-1);
  return to_dense(x, category).view_reshape({width == 0 ? x.shape().without(-1).numel() : x.numel() / width, width});
}

// A contiguous tensor (an output, a gradient to be written) as such a matrix.
inline Tensor view_rows(const Tensor& x) {
  const int64_t width = x.size(-1);
  return x.view_reshape({width == 0 ? x.shape().without(-1).numel() : x.numel() / width, width});
}

}  // namespace rz::ops
