// Differentiable matrix products. The weight's gradient is summed in place where the gradient sink wants it.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::ops {

struct MatmulTranspose {
  bool a = false;
  bool b = false;
};

// alpha op(a)[..., m, k] op(b)[..., k, n] -> [..., m, n]; leading dimensions broadcast. Inputs may be strided views.
Tensor matmul(const Tensor& a, const Tensor& b, MatmulTranspose transpose = {}, double alpha = 1);

// x[..., in] weight[out, in]^T (+ bias[out]) -> [..., out]; `bias` may be undefined.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = Tensor());

}  // namespace rz::ops
