// Images and labels out of NumPy arrays (npy.h).
#include <algorithm>
#include <cmath>

#include "models/data/load_images.h"
#include "models/data/npy.h"
#include "runtime/core/error.h"

namespace rz::models {

namespace {

std::vector<uint8_t> read_labels(const std::string& path, int64_t images) {
  std::vector<uint8_t> labels;
  for (const int64_t label : read_npy_labels(path, images, "images")) {
    RZ_CONFIG_CHECK(label >= 0 && label < 256, "{}: label {} of image {} is not in [0, 256)", path, label, labels.size());
    labels.push_back(static_cast<uint8_t>(label));
  }
  return labels;
}

}  // namespace

ImageDataset load_npy(const std::string& images_path, const std::string& labels_path, double validation_fraction) {
  RZ_CONFIG_CHECK(validation_fraction > 0 && validation_fraction < 1, "validation fraction {} is not between 0 and 1", validation_fraction);
  const InputFile file(images_path);
  const NpyHeader header = read_npy_header(file);
  RZ_CONFIG_CHECK(header.type == "|u1" || header.type == "<u1", "{}: elements of type {}; valid: uint8 levels", images_path, header.type);
  RZ_CONFIG_CHECK(header.shape.size() == 3 || header.shape.size() == 4, "{}: {} dimensions; valid: [images, height, width] or with channels behind",
                  images_path, header.shape.size());
  const auto pixels = read_npy_body(file, header, 1);
  const int64_t count = header.shape[0];
  const ImageSize size{header.shape[1], header.shape[2], header.shape.size() == 4 ? header.shape[3] : 1};
  const auto labels = labels_path.empty() ? std::vector<uint8_t>(static_cast<size_t>(count), 0) : read_labels(labels_path, count);
  std::vector<std::string> names;
  for (int c = 0; c <= *std::max_element(labels.begin(), labels.end()); ++c) names.push_back(std::to_string(c));
  const auto held_out = std::llround(static_cast<double>(count) * validation_fraction);
  RZ_CONFIG_CHECK(held_out >= 1 && held_out < count, "{}: {} images are too few to hold out a fraction of {}", images_path, count, validation_fraction);
  const auto part = [&](int64_t begin, int64_t end) {
    ImageList list(size, end - begin, images_path);
    std::copy(pixels.begin() + begin * size.values(), pixels.begin() + end * size.values(), list.pixels().begin());
    std::copy(labels.begin() + begin, labels.begin() + end, list.labels().begin());
    return list;
  };
  return {part(0, count - held_out), part(count - held_out, count), names, images_path};
}

}  // namespace rz::models
