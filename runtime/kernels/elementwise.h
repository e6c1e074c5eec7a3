// Elementwise kernels and copies. Inputs may be strided and broadcast views; outputs are contiguous unless said otherwise.
#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class ElementwiseKernels {
 public:
  virtual ~ElementwiseKernels() = default;

  virtual void fill(Tensor& out, double value) = 0;
  // out = x, converting types; both may be strided views of the same shape.
  virtual void copy(const Tensor& x, Tensor& out) = 0;
  // out = x, or out += x when accumulate; same shape; converts to out's type (sums in its compute type).
  virtual void add_into(const Tensor& x, Tensor& out, bool accumulate) = 0;
};

}  // namespace rz
