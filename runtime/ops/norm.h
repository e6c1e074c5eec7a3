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

// Layer norm of each sample with a scale and shift of its own, (x - mean) / sqrt(var + eps) (1 + scale) + shift: the conditioned norm
// of DiT (Peebles and Xie 2022, arXiv 2212.09748, section 3.2). x [N, .., D]; scale, shift [N, D] of x's type.
Tensor layer_norm_modulate(const Tensor& x, const Tensor& scale, const Tensor& shift, double eps = 1e-6);

// x + h gate, each sample with a gate of its own: what joins a conditioned block's branch h to its residual stream (adaLN-Zero, same
// section). x, h [N, .., D]; gate [N, D]; one type.
Tensor add_gated(const Tensor& x, const Tensor& h, const Tensor& gate);

// weight: [D], as above; may be undefined.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps = 1e-5);

}  // namespace rz::ops
