#include "models/data/image_dataset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/shape.h"

namespace rz::models {

std::string ImageSize::str() const { return fmt::format("{} x {} x {}", height, width, channels); }

ImageList::ImageList(ImageSize size, int64_t count, std::string owner) : size_(size), count_(count) {
  RZ_CHECK(size.height >= 1 && size.width >= 1 && size.channels >= 1 && count >= 0, "{} images of {} cannot be", count, size.str());
  const int64_t each = checked_multiply(checked_multiply(size.height, size.width, owner), size.channels, owner);
  const int64_t bytes = checked_multiply(count, each + 1, owner);
  storage_ = Storage::make(static_cast<size_t>(bytes), Category::input, std::move(owner));
  data_ = reinterpret_cast<uint8_t*>(storage_->data());
}

ImageDataset::ImageDataset(ImageList train, ImageList validation, std::vector<std::string> class_names, std::string source)
    : train_(std::move(train)), validation_(std::move(validation)), class_names_(std::move(class_names)), source_(std::move(source)) {
  RZ_CONFIG_CHECK(!class_names_.empty() && class_names_.size() <= 256, "{}: {} classes; valid: 1 to 256", source_, class_names_.size());
  for (const Split split : {Split::train, Split::validation}) {
    const ImageList& list = images(split);
    RZ_CONFIG_CHECK(list.count() > 0, "{}: there are no {} images", source_, name(split));
    RZ_CONFIG_CHECK(list.size() == size(), "{}: training images are {}, {} images {}", source_, size().str(), name(split), list.size().str());
    if (dry_run()) continue;
    const auto labels = list.labels();
    for (size_t i = 0; i < labels.size(); ++i)
      RZ_CONFIG_CHECK(labels[i] < class_names_.size(), "{}: label {} of {} image {} is not below the {} classes", source_, labels[i], name(split), i,
                      class_names_.size());
  }
}

ImageDataset::Statistics ImageDataset::statistics(int64_t padding) const {
  std::array<int64_t, 256> seen{};
  for (const uint8_t v : train_.pixels()) ++seen[v];
  const int64_t padded = (size().height + 2 * padding) * (size().width + 2 * padding) * size().channels;
  seen[0] += (padded - size().values()) * train_.count();
  const auto total = static_cast<double>(padded * train_.count());
  // Sums of integers: the same numbers whatever the order.
  int64_t sum = 0, squares = 0;
  for (int64_t v = 0; v < 256; ++v) {
    sum += v * seen[static_cast<size_t>(v)];
    squares += v * v * seen[static_cast<size_t>(v)];
  }
  const double mean = static_cast<double>(sum) / total;
  const double variance = static_cast<double>(squares) / total - mean * mean;
  return {mean / 127.5 - 1, std::sqrt(std::max(0.0, variance)) / 127.5};
}

uint64_t ImageDataset::digest() const {
  const auto hash_of = [](const ImageList& list) {
    const auto hash = [](std::span<const uint8_t> bytes) { return stable_hash({reinterpret_cast<const char*>(bytes.data()), bytes.size()}); };
    return fmt::format("{} {} {:x} {:x}", list.count(), list.size().str(), hash(list.pixels()), hash(list.labels()));
  };
  return stable_hash(fmt::format("{} {} {}", classes(), hash_of(train_), hash_of(validation_)));
}

}  // namespace rz::models
