// Normalization over the last dimension. For x [.., D]:
//   layer norm  y = (x - mean) / sqrt(var + eps) * weight + bias     Ba, Kiros, Hinton, "Layer normalization", 2016
//   RMS norm    y = x / sqrt(mean(x^2) + eps) * weight               Zhang, Sennrich, "Root mean square layer normalization", 2019
//
// Kept for backward: x and one or two numbers per row. Gradients of weight and bias are sums over fixed blocks of rows, added in
// block order: the same bits for any number of threads.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::ops {

// weight, bias: [D], of x's type, or f32 where x has a 16-bit type; both may be undefined (no scale, no shift).
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

// weight: [D], as above; may be undefined.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps = 1e-5);

}  // namespace rz::ops
