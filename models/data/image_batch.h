// Batches of images. The training batch is keyed by (seed, step, global sample index), so it does not depend on how many ranks share it.
// Pure functions; thread-safe.
#pragma once

#include <cstdint>

#include "models/data/image_dataset.h"
#include "runtime/core/tensor.h"

namespace rz::models {

struct ImageOptions {
  bool flip = false;    // training images are mirrored left to right with probability 1/2
  int64_t padding = 0;  // pixels of -1 added on each side
};

ImageSize padded(ImageSize size, int64_t padding);

// In Category::input.
struct ImageBatch {
  Tensor images;  // f32 [B, H, W, C] in [-1, 1]
  Tensor labels;  // i32 [B]
};

// Samples [first_sample, first_sample + count) of the global batch of `step`: training images drawn uniformly, with replacement.
ImageBatch make_train_images(const ImageDataset& dataset, const ImageOptions& options, uint64_t seed, int64_t step, int64_t first_sample,
                             int64_t count);

// Images [first, first + count) of a part, in their order; they must exist. Never mirrored.
ImageBatch make_image_batch(const ImageDataset& dataset, const ImageOptions& options, Split split, int64_t first, int64_t count);

}  // namespace rz::models
