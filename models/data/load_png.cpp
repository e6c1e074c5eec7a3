#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "models/data/file.h"
#include "models/data/load_images.h"
#include "runtime/core/error.h"

namespace rz::models {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostFileBytes = int64_t{1} << 26;
constexpr int64_t kMostSide = 4096;

struct Picture {
  ImageSize size;
  std::vector<uint8_t> pixels;
};

// libpng's simplified reader: it converts palettes, 16 bits and alpha to gray or RGB of 8 bits.
Picture read_png(const std::string& path) {
  const InputFile file(path);
  RZ_CONFIG_CHECK(file.size_bytes() <= kMostFileBytes, "{}: {} bytes; at most {} are read", path, file.size_bytes(), kMostFileBytes);
  std::vector<std::byte> bytes(static_cast<size_t>(file.size_bytes()));
  file.read_at(0, bytes);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const auto release = [](png_image* p) { png_image_free(p); };
  const std::unique_ptr<png_image, decltype(release)> releases(&image, release);
  RZ_CONFIG_CHECK(png_image_begin_read_from_memory(&image, bytes.data(), bytes.size()) != 0, "{}: not a readable PNG: {}", path, image.message);
  RZ_CONFIG_CHECK(image.width <= kMostSide && image.height <= kMostSide, "{}: {} x {} pixels; valid: at most {} a side", path, image.width,
                  image.height, kMostSide);
  const bool color = (image.format & PNG_FORMAT_FLAG_COLOR) != 0;
  image.format = color ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  Picture picture{{image.height, image.width, color ? 3 : 1}, {}};
  picture.pixels.resize(PNG_IMAGE_SIZE(image));
  const png_color black{0, 0, 0};
  RZ_CONFIG_CHECK(png_image_finish_read(&image, &black, picture.pixels.data(), 0, nullptr) != 0, "{}: damaged PNG: {}", path, image.message);
  return picture;
}

std::vector<fs::path> sorted_entries(const fs::path& folder, bool folders) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::directory_iterator i(folder, error), end; !error && i != end; i.increment(error))
    if (folders ? i->is_directory() : i->path().extension() == ".png") out.push_back(i->path());
  RZ_CONFIG_CHECK(!error, "{}: cannot be read: {}", folder.string(), error.message());
  std::sort(out.begin(), out.end());
  return out;
}

struct File {
  fs::path path;
  uint8_t label = 0;
};

ImageList read_all(const std::vector<File>& files, const std::string& owner, const ImageSize& size) {
  ImageList list(size, static_cast<int64_t>(files.size()), owner);
  for (size_t i = 0; i < files.size(); ++i) {
    const Picture picture = read_png(files[i].path.string());
    RZ_CONFIG_CHECK(picture.size == size, "{}: its size is {}, that of the others {}", files[i].path.string(), picture.size.str(), size.str());
    std::memcpy(list.pixels().data() + static_cast<int64_t>(i) * size.values(), picture.pixels.data(), picture.pixels.size());
    list.labels()[i] = files[i].label;
  }
  return list;
}

}  // namespace

ImageDataset load_png_folder(const std::string& folder, double validation_fraction) {
  RZ_CONFIG_CHECK(validation_fraction > 0 && validation_fraction < 1, "validation fraction {} is not between 0 and 1", validation_fraction);
  std::vector<fs::path> classes = sorted_entries(folder, true);
  std::vector<std::string> names;
  if (classes.empty()) classes.push_back(folder), names.push_back("image");
  else
    for (const auto& c : classes) names.push_back(c.filename().string());
  RZ_CONFIG_CHECK(classes.size() <= 256, "{}: {} subfolders; valid: at most 256 classes", folder, classes.size());
  std::vector<File> train, validation;
  for (size_t c = 0; c < classes.size(); ++c) {
    const auto files = sorted_entries(classes[c], false);
    RZ_CONFIG_CHECK(!files.empty(), "{}: there is no PNG file in it", classes[c].string());
    for (size_t i = 0; i < files.size(); ++i) {
      // Held out: where the count of held-out files, spread evenly, steps.
      const bool held_out = std::floor(static_cast<double>(i + 1) * validation_fraction) > std::floor(static_cast<double>(i) * validation_fraction);
      (held_out ? validation : train).push_back({files[i], static_cast<uint8_t>(c)});
    }
  }
  RZ_CONFIG_CHECK(!train.empty() && !validation.empty(), "{}: {} images are too few to hold out a fraction of {}", folder, train.size() + validation.size(),
                  validation_fraction);
  const ImageSize size = read_png(train.front().path.string()).size;
  return {read_all(train, folder, size), read_all(validation, folder, size), names, folder};
}

}  // namespace rz::models
