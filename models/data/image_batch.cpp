// Legend: B samples, H height, W width, C channels.
#include "models/data/image_batch.h"

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/core/random.h"

namespace rz::models {

namespace {

struct Choice {
  int64_t image = 0;
  bool mirrored = false;
};

template <class ChoiceOf>
ImageBatch cut_images(const ImageList& list, int64_t padding, int64_t count, ChoiceOf choice_of) {
  const ImageSize from = list.size(), to = padded(from, padding);
  ImageBatch batch{Tensor::empty({count, to.height, to.width, to.channels}, DType::f32, Category::input, "batch images"),
                   Tensor::empty({count}, DType::i32, Category::input, "batch labels")};
  if (dry_run()) return batch;
  auto* out_BHWC = batch.images.data<float>();
  auto* labels_B = batch.labels.data<int32_t>();
  std::fill(out_BHWC, out_BHWC + count * to.values(), -1.0F);
  for (int64_t b = 0; b < count; ++b) {
    const Choice choice = choice_of(b);
    labels_B[b] = list.labels()[static_cast<size_t>(choice.image)];
    const uint8_t* in_HWC = list.pixels().data() + choice.image * from.values();
    for (int64_t h = 0; h < from.height; ++h)
      for (int64_t w = 0; w < from.width; ++w) {
        const int64_t source = choice.mirrored ? from.width - 1 - w : w;
        float* out = out_BHWC + b * to.values() + ((h + padding) * to.width + w + padding) * to.channels;
        for (int64_t c = 0; c < from.channels; ++c)
          out[c] = static_cast<float>(in_HWC[(h * from.width + source) * from.channels + c]) / 127.5F - 1.0F;
      }
  }
  return batch;
}

}  // namespace

ImageSize padded(ImageSize size, int64_t padding) {
  RZ_CHECK(padding >= 0, "a padding of {} pixels", padding);
  return {size.height + 2 * padding, size.width + 2 * padding, size.channels};
}

ImageBatch make_train_images(const ImageDataset& dataset, const ImageOptions& options, uint64_t seed, int64_t step, int64_t first_sample,
                             int64_t count) {
  RZ_CHECK(step >= 0 && first_sample >= 0 && count >= 0, "step {}, first sample {}, {} samples", step, first_sample, count);
  const ImageList& list = dataset.images(Split::train);
  return cut_images(list, options.padding, count, [&](int64_t b) {
    const Random random(seed, "data", static_cast<uint64_t>(step), static_cast<uint64_t>(first_sample + b));
    return Choice{static_cast<int64_t>(random.below(0, static_cast<uint64_t>(list.count()))), options.flip && (random.bits(8) & 1) != 0};
  });
}

ImageBatch make_image_batch(const ImageDataset& dataset, const ImageOptions& options, Split split, int64_t first, int64_t count) {
  const ImageList& list = dataset.images(split);
  RZ_CHECK(first >= 0 && count >= 0 && first <= list.count() && count <= list.count() - first, "{} images [{}, {} + {}) asked of {}", name(split),
           first, first, count, list.count());
  return cut_images(list, options.padding, count, [&](int64_t b) { return Choice{first + b, false}; });
}

}  // namespace rz::models
