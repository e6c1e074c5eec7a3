// Labelled images with 256 levels per value, channels last, in a training and a validation part.
//
// * A level v stands for v / 127.5 - 1, in [-1, 1].
// * Copies share the pixels, which never change. Thread-safe. Pixels are counted as Category::input of the rank that loaded them.
// * Batches: image_batch.h. Sources: load_images.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/data/token_dataset.h"
#include "runtime/core/storage.h"

namespace rz::models {

struct ImageSize {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 1;

  int64_t values() const { return height * width * channels; }
  bool operator==(const ImageSize&) const = default;
  std::string str() const;  // "28 x 28 x 1"
};

// A list of images and their labels. A cheap handle.
class ImageList {
 public:
  ImageList() = default;
  // Uninitialized; fill through pixels() and labels().
  ImageList(ImageSize size, int64_t count, std::string owner);

  int64_t count() const { return count_; }
  const ImageSize& size() const { return size_; }
  std::span<uint8_t> pixels() const { return {data_, static_cast<size_t>(count_ * size_.values())}; }
  std::span<uint8_t> labels() const { return {data_ + count_ * size_.values(), static_cast<size_t>(count_)}; }

 private:
  std::shared_ptr<Storage> storage_;
  uint8_t* data_ = nullptr;  // all pixels, then all labels
  ImageSize size_;
  int64_t count_ = 0;
};

class ImageDataset {
 public:
  // Labels must lie in [0, class_names.size()); ConfigError naming value and position otherwise, when sizes differ, or when a part is
  // empty. In a dry run contents are not looked at. `source` names the data in errors.
  ImageDataset(ImageList train, ImageList validation, std::vector<std::string> class_names, std::string source);

  const ImageSize& size() const { return train_.size(); }
  const ImageList& images(Split split) const { return split == Split::train ? train_ : validation_; }
  int64_t classes() const { return static_cast<int64_t>(class_names_.size()); }
  const std::vector<std::string>& class_names() const { return class_names_; }
  const std::string& source() const { return source_; }

  // Mean and standard deviation of all values of the training images in [-1, 1], each with `padding` pixels of -1 around it.
  struct Statistics {
    double mean = 0;
    double std = 0;
  };
  Statistics statistics(int64_t padding = 0) const;

  // A hash of sizes, pixels and labels: equal on ranks that hold the same data.
  uint64_t digest() const;

 private:
  ImageList train_;
  ImageList validation_;
  std::vector<std::string> class_names_;
  std::string source_;
};

}  // namespace rz::models
