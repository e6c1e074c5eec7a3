// Pictures of 8 bits a channel as PNG.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "models/data/image_dataset.h"

namespace rz::tools {

// The bytes of a PNG file. `size` has 1 (gray) or 3 channels; ConfigError for others.
std::string png_of(const models::ImageSize& size, std::span<const uint8_t> pixels);

// Images of `size` side by side, `columns` in a row, each without `cropped` pixels of its border and a pixel apart from its neighbours.
struct Sheet {
  models::ImageSize size;
  std::vector<uint8_t> pixels;
};
Sheet image_sheet(const models::ImageSize& size, std::span<const uint8_t> images, int64_t columns, int64_t cropped = 0);

inline constexpr int64_t kSampleColumns = 10;  // in pictures of samples

// Levels 0 .. 255 of values in [-1, 1], rounded; what lies outside is clamped.
std::vector<uint8_t> levels_of(std::span<const float> values);

}  // namespace rz::tools
