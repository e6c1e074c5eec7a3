// The sizes of one convolution, checked, and the depthwise functions behind ConvKernels.
#pragma once

#include <cstdint>

#include "runtime/kernels/conv.h"

namespace rz::cpu {

struct ConvSizes {
  int64_t images, height, width, in, out_height, out_width, out, kernel_h, kernel_w;
  ConvWindow window;
};

// x [N, H, W, I], weight [O, KH, KW, I] (depthwise: [KH, KW, C]) with an element at least, y [N, Ho, Wo, O]; rz::Error naming shapes that
// do not fit.
enum class ConvKind : uint8_t { full, depthwise };
ConvSizes conv_sizes(ConvKind kind, const Tensor& x, const Tensor& weight, const ConvWindow& window, const Tensor& y);

void depthwise_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, Tensor& y);
void depthwise_data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate);
void depthwise_weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight, bool accumulate);

}  // namespace rz::cpu
