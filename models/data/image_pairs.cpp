#include "models/data/image_pairs.h"

#include <algorithm>
#include <cmath>

#include "models/data/npy.h"
#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "runtime/core/rank_context.h"

namespace rz::models {

namespace {

// Floats of shape [N, H, W, C]; N is any where `count` is 0.
Tensor read_rows(const std::string& path, const ImageSize& size, int64_t count) {
  const InputFile file(path);
  const NpyHeader header = read_npy_header(file);
  RZ_CONFIG_CHECK(header.type == "<f4", "{}: elements of type {}; valid: float32, little-endian", path, header.type);
  const std::vector<int64_t>& shape = header.shape;
  RZ_CONFIG_CHECK(shape.size() == 4 && shape[0] >= 1 && ImageSize(shape[1], shape[2], shape[3]) == size && (count == 0 || shape[0] == count),
                  "{}: an array of [{}]; valid for these pairs: [{}, {}, {}, {}]", path, fmt::join(shape, ", "),
                  count == 0 ? "pairs" : std::to_string(count), size.height, size.width, size.channels);
  check_npy_body(file, header, sizeof(float));
  Tensor rows = Tensor::empty({shape[0], shape[1], shape[2], shape[3]}, DType::f32, Category::input, path);
  if (dry_run()) return rows;
  const std::span<float> values(rows.data<float>(), static_cast<size_t>(rows.numel()));
  file.read_at(header.body, std::as_writable_bytes(values));
  const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  RZ_CONFIG_CHECK(bad == values.end(), "{}: pair {} holds {}; valid: finite numbers", path, (bad - values.begin()) / size.values(), *bad);
  return rows;
}

}  // namespace

ImagePairs::ImagePairs(const std::string& folder, const ImageSize& size, int64_t classes, double validation_fraction)
    : size_(size), noise_(read_rows(folder + "/noise.npy", size, 0)) {
  count_ = noise_.size(0);
  images_ = read_rows(folder + "/images.npy", size, count_);
  const std::string path = folder + "/labels.npy";
  const auto labels = read_npy_labels(path, count_, "pairs");
  labels_ = Tensor::empty({count_}, DType::i32, Category::input, path);
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t label = labels[static_cast<size_t>(i)];
    RZ_CONFIG_CHECK(label >= 0 && label < classes, "{}: label {} of pair {} is not in [0, {})", path, label, i, classes);
    if (!dry_run()) labels_.data<int32_t>()[i] = static_cast<int32_t>(label);
  }
  const auto held_out = std::llround(static_cast<double>(count_) * validation_fraction);
  RZ_CONFIG_CHECK(held_out >= 1 && held_out < count_, "{}: {} pairs are too few to hold out a fraction of {}", folder, count_, validation_fraction);
  train_ = count_ - held_out;
}

template <class PairOf>
PairBatch ImagePairs::cut(int64_t count, PairOf pair_of) const {
  const Shape shape = {count, size_.height, size_.width, size_.channels};
  PairBatch batch{{Tensor::empty(shape, DType::f32, Category::input, "batch images"), Tensor::empty({count}, DType::i32, Category::input, "batch labels")},
                  Tensor::empty(shape, DType::f32, Category::input, "batch noise")};
  if (dry_run()) return batch;
  const int64_t values = size_.values();
  for (int64_t b = 0; b < count; ++b) {
    const int64_t from = pair_of(b);
    std::copy_n(images_.data<float>() + from * values, values, batch.data.images.data<float>() + b * values);
    std::copy_n(noise_.data<float>() + from * values, values, batch.noise.data<float>() + b * values);
    batch.data.labels.data<int32_t>()[b] = labels_.data<int32_t>()[from];
  }
  return batch;
}

PairBatch ImagePairs::train_batch(uint64_t seed, int64_t step, int64_t first_sample, int64_t count) const {
  return cut(count, [&](int64_t b) {
    return static_cast<int64_t>(
        Random(seed, "pairs", static_cast<uint64_t>(step), static_cast<uint64_t>(first_sample + b)).below(0, static_cast<uint64_t>(train_)));
  });
}

PairBatch ImagePairs::validation_batch(int64_t first, int64_t count) const {
  RZ_CHECK(first >= 0 && count >= 0 && first + count <= held_out(), "pairs [{}, {} + {}) asked of {} held out", first, first, count, held_out());
  return cut(count, [&](int64_t b) { return train_ + first + b; });
}

uint64_t ImagePairs::digest() const {
  uint64_t digest = 0;
  for (const Tensor* t : {&noise_, &images_}) {
    const auto bytes = static_cast<size_t>(t->numel()) * sizeof(float);
    digest = digest * 31 + stable_hash({reinterpret_cast<const char*>(t->data<float>()), bytes});
  }
  return digest * 31 + stable_hash({reinterpret_cast<const char*>(labels_.data<int32_t>()), static_cast<size_t>(count_) * sizeof(int32_t)});
}

}  // namespace rz::models
