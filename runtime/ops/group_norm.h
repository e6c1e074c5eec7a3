// Group norm (Wu and He 2018, arXiv 1803.08494) of images, channels last, with what diffusion networks put behind it in one pass:
//   xhat = (x - mean) / sqrt(var + eps)      mean and variance over the pixels of each group of neighbouring channels
//   z    = (xhat * weight + bias) * (1 + scale) + shift
//   y    = z, or z sigmoid(z) with `silu`
// The scale and shift of each sample are the adaptive group norm of Nichol and Dhariwal (2021, arXiv 2102.09672), section 2.
//
// Kept for backward: x and two numbers per group, whatever is fused. The same bits for any number of threads.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::ops {

struct GroupNormOptions {
  int64_t groups = 1;  // divides the channels
  double epsilon = 1e-5;
  bool silu = false;
};

// x [N, .., C]; weight, bias [C]; scale, shift [N, C]. Each of the four may be undefined; they have x's type, or f32 where x has a
// 16-bit type.
Tensor group_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const GroupNormOptions& options, const Tensor& scale = {},
                  const Tensor& shift = {});

}  // namespace rz::ops
