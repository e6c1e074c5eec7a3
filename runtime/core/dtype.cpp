#include "runtime/core/dtype.h"

#include <array>

namespace rz {

namespace {
constexpr std::array<const char*, 7> kNames = {"f32", "bf16", "f16", "f64", "i32", "i64", "u8"};
}

const char* name(DType t) { return kNames[static_cast<size_t>(t)]; }

DType parse_dtype(std::string_view text) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (text == kNames[i]) return static_cast<DType>(i);
  throw ConfigError(fmt::format("unknown dtype '{}'; choose f32, bf16, f16, f64, i32, i64 or u8", text));
}

}  // namespace rz
