// A 5 x 7 bitmap font of the printable ASCII characters.
#pragma once

#include <array>
#include <cstdint>

namespace rz::tools {

inline constexpr int kFontColumns = 5;
inline constexpr int kFontRows = 8;  // the lowest row holds descenders

// A glyph's columns from left to right; bit 0 is the top row. Unknown characters are blank.
const std::array<uint8_t, kFontColumns>& glyph(char c);

}  // namespace rz::tools
