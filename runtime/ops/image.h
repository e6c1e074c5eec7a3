// Pooling, upsampling and rearranging of images, channels last: x [N, H, W, C].
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/image.h"

namespace rz::ops {

Tensor average_pool(const Tensor& x, const PoolWindow& window = {});
// The gradient goes to the first of equal pixels. Kept for backward: a byte per output.
Tensor max_pool(const Tensor& x, const PoolWindow& window = {});

// Nearest neighbour: [N, H, W, C] -> [N, factor H, factor W, C].
Tensor upsample(const Tensor& x, int64_t factor = 2);

// [N, H, W, C] -> [N, H / block, W / block, block block C]: channels are (row in the block, column in the block, c). `block` divides
// H and W.
Tensor space_to_depth(const Tensor& x, int64_t block);
// Its inverse.
Tensor depth_to_space(const Tensor& x, int64_t block);

}  // namespace rz::ops
