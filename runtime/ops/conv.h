// Two-dimensional convolution of images, channels last: [N, H, W, C] (docs/adr/0005-convolution.md). Equations in kernels/conv.h.
//
// Kept for backward: x, the weight, and the result where ReLU is fused. The same bits for any number of threads.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/conv.h"

namespace rz::ops {

// x [N, H, W, I], weight [O, KH, KW, I], bias [O] or undefined -> [N, Ho, Wo, O] with Ho = (H + 2 padding - KH) / stride + 1 rounded
// down. With `activation` relu the result is max(.., 0), in the same pass. One pixel, stride 1, no padding is a matrix product.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window = {},
              ConvActivation activation = ConvActivation::none);

// Every channel with a kernel of its own: weight [KH, KW, C], bias [C] or undefined.
Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window = {});

}  // namespace rz::ops
