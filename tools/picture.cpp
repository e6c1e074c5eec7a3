#include "tools/picture.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "runtime/core/error.h"

namespace rz::tools {

std::string png_of(const models::ImageSize& size, std::span<const uint8_t> pixels) {
  RZ_CONFIG_CHECK(size.channels == 1 || size.channels == 3, "images of {} channels cannot be drawn; 1 or 3 can", size.channels);
  RZ_CHECK(static_cast<int64_t>(pixels.size()) == size.values(), "{} values for a picture of {}", pixels.size(), size.str());
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(size.width);
  image.height = static_cast<png_uint_32>(size.height);
  image.format = size.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t bytes = 0;
  RZ_CHECK(png_image_write_to_memory(&image, nullptr, &bytes, 0, pixels.data(), 0, nullptr) != 0, "libpng: {}", image.message);
  std::string out(bytes, '\0');
  RZ_CHECK(png_image_write_to_memory(&image, out.data(), &bytes, 0, pixels.data(), 0, nullptr) != 0, "libpng: {}", image.message);
  out.resize(bytes);
  return out;
}

Sheet image_sheet(const models::ImageSize& size, std::span<const uint8_t> images, int64_t columns, int64_t cropped) {
  const models::ImageSize each{size.height - 2 * cropped, size.width - 2 * cropped, size.channels};
  const int64_t count = static_cast<int64_t>(images.size()) / size.values();
  RZ_CHECK(columns >= 1 && count >= 1 && each.height >= 1 && each.width >= 1, "{} images of {} in {} columns, cropped by {}", count, size.str(), columns,
           cropped);
  columns = std::min(columns, count);
  const int64_t rows = (count + columns - 1) / columns;
  Sheet sheet{{rows * (each.height + 1) - 1, columns * (each.width + 1) - 1, size.channels}, {}};
  sheet.pixels.assign(static_cast<size_t>(sheet.size.values()), 255);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t h = 0; h < each.height; ++h) {
      const auto* from = images.data() + i * size.values() + ((h + cropped) * size.width + cropped) * size.channels;
      auto* to = sheet.pixels.data() +
                 ((i / columns * (each.height + 1) + h) * sheet.size.width + i % columns * (each.width + 1)) * size.channels;
      std::copy(from, from + each.width * size.channels, to);
    }
  return sheet;
}

std::vector<uint8_t> levels_of(std::span<const float> values) {
  std::vector<uint8_t> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    RZ_CHECK(!std::isnan(values[i]), "value {} of the images is not a number", i);
    out[i] = static_cast<uint8_t>(std::lround(std::clamp((values[i] + 1.0F) * 127.5F, 0.0F, 255.0F)));
  }
  return out;
}

}  // namespace rz::tools
