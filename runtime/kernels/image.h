// Pooling and upsampling of images, channels last: x [N, H, W, C]. All tensors are contiguous, of one floating-point type.
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

// size x size pixels, `stride` apart; windows that do not fit are left out.
struct PoolWindow {
  int64_t size = 2;
  int64_t stride = 2;
  int64_t output_extent(int64_t input) const { return input < size ? 0 : (input - size) / stride + 1; }
};

class ImageKernels {
 public:
  virtual ~ImageKernels() = default;

  virtual void average_pool(const Tensor& x, const PoolWindow& window, Tensor& y) = 0;
  virtual void average_pool_gradient(const Tensor& grad, const PoolWindow& window, Tensor& dx, bool accumulate) = 0;
  // `index` (u8, y's shape; may be undefined): which pixel of the window, row by row, was the largest, the first of equals. A NaN wins.
  virtual void max_pool(const Tensor& x, const PoolWindow& window, Tensor& y, Tensor& index) = 0;
  virtual void max_pool_gradient(const Tensor& grad, const Tensor& index, const PoolWindow& window, Tensor& dx, bool accumulate) = 0;
  // Every pixel `factor` x `factor` times.
  virtual void upsample(const Tensor& x, int64_t factor, Tensor& y) = 0;
  virtual void upsample_gradient(const Tensor& grad, int64_t factor, Tensor& dx, bool accumulate) = 0;
};

}  // namespace rz
