// Two-dimensional convolution of images, channels last: x [N, H, W, I], y and its gradient [N, Ho, Wo, O], weights [O, KH, KW, I]
// (depthwise: [KH, KW, C]). docs/adr/0005-convolution.md says how it is computed and why this layout.
//
//   y[n, i, j, o] = bias[o] + sum over r, s, c of weight[o, r, s, c] x[n, i stride + r - padding, j stride + s - padding, c]
// where x is 0 outside the image. All tensors are contiguous and share one floating-point type; f32, f16, bf16 sum in float32, f64 in
// double. Every sum is taken in an order that depends on the sizes alone: the same bits for any number of threads, and an image's
// outputs and data gradients do not depend on the other images. What is not finite reaches those pixels only that see it, but 3 x 3 sums of
// an infinity may be NaN: differences of pixels are multiplied (Winograd's filtering).
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

struct ConvWindow {
  int64_t stride = 1;
  int64_t padding = 0;  // zeros on each of the four sides

  // Extent of the output along a dimension; below 1 when the kernel does not fit.
  int64_t output_extent(int64_t input, int64_t kernel) const {
    return input + 2 * padding < kernel ? 0 : (input + 2 * padding - kernel) / stride + 1;
  }
};

// What is applied to the sums while they are in the cache.
enum class ConvActivation : uint8_t { none, relu };

class ConvKernels {
 public:
  virtual ~ConvKernels() = default;

  // bias [O] or undefined.
  virtual void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, ConvActivation activation,
                       Tensor& y) = 0;
  virtual void data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate) = 0;
  virtual void weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight, bool accumulate) = 0;

  // Each channel on its own: y[n, i, j, c] = bias[c] + sum over r, s of weight[r, s, c] x[.., c].
  virtual void depthwise_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, Tensor& y) = 0;
  virtual void depthwise_data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate) = 0;
  virtual void depthwise_weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight,
                                         bool accumulate) = 0;
};

}  // namespace rz
