// Pairs of noise and image, with the image's label: what a flow model drew, for reflow and distillation (docs/diffusion.md). A folder of
// three NumPy arrays:
//
//   noise.npy   f4 [N, H, W, C], what sampling started from
//   images.npy  f4 [N, H, W, C], what became of it, in about [-1, 1]
//   labels.npy  integers [N], in [0, classes)
//
// (pairs.json beside them says where they come from; nothing reads it.)
//
// Copies share the arrays, which never change: Category::input of the rank that loaded them. The last part is held out. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/data/image_batch.h"

namespace rz::models {

struct PairBatch {
  ImageBatch data;
  Tensor noise;  // f32 [B, H, W, C]
};

class ImagePairs {
 public:
  // ConfigError naming the file unless it is for images of `size` (padding included) and labels below `classes`. A dry run reads the
  // headers only.
  ImagePairs(const std::string& folder, const ImageSize& size, int64_t classes, double validation_fraction);

  int64_t train_count() const { return train_; }
  int64_t held_out() const { return count_ - train_; }

  // Samples [first_sample, first_sample + count) of the global batch of `step`: drawn uniformly, with replacement, keyed by
  // (seed, step, global sample index).
  PairBatch train_batch(uint64_t seed, int64_t step, int64_t first_sample, int64_t count) const;
  // Held-out pairs [first, first + count), in their order; they must exist.
  PairBatch validation_batch(int64_t first, int64_t count) const;

  // Of all contents: equal on ranks that hold the same.
  uint64_t digest() const;

 private:
  template <class PairOf>
  PairBatch cut(int64_t count, PairOf pair_of) const;

  ImageSize size_;
  int64_t count_ = 0, train_ = 0;
  Tensor noise_, images_, labels_;
};

}  // namespace rz::models
