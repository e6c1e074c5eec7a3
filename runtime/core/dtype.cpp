#include "runtime/core/dtype.h"

#include <array>
#include <cmath>

namespace rz {

namespace {
constexpr std::array<const char*, 7> kNames = {"f32", "bf16", "f16", "f64", "i32", "i64", "u8"};
}

namespace detail {

uint16_t float_to_half(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x1FFu));  // NaN stays NaN, quiet
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;                                                       // rounds beyond 65504
  if (magnitude < 0x38800000u) {
    // Subnormal: the hardware's own rounding to a multiple of 2^-24.
    const float scaled = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1.0p24f);
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(scaled));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0x1Fu) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

}  // namespace detail

const char* name(DType t) { return kNames[static_cast<size_t>(t)]; }

DType parse_dtype(std::string_view text) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (text == kNames[i]) return static_cast<DType>(i);
  throw ConfigError(fmt::format("unknown dtype '{}'; choose f32, bf16, f16, f64, i32, i64 or u8", text));
}

}  // namespace rz
