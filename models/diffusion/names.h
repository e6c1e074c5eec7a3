// Names of enumerators: printed in messages, read from configurations.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/core/error.h"

namespace rz::models::diffusion {

template <class E, size_t N>
using Names = std::array<std::pair<E, const char*>, N>;

template <class E, size_t N>
const char* name_in(const Names<E, N>& names, E value) {
  for (const auto& [known, text] : names)
    if (known == value) return text;
  return "?";
}

// ConfigError listing the choices.
template <class E, size_t N>
E parse_in(const Names<E, N>& names, std::string_view what, std::string_view text) {
  std::string valid;
  for (const auto& [value, known] : names) {
    if (text == known) return value;
    valid += (valid.empty() ? "" : ", ") + std::string(known);
  }
  throw ConfigError(fmt::format("unknown {} '{}'; valid: {}", what, text, valid));
}

}  // namespace rz::models::diffusion
