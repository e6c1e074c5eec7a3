// Small text rules that the checkpoint's parts share. Names in files come from anywhere: printable() makes them safe to print.
#pragma once

#include <string>
#include <string_view>

#include "runtime/core/error.h"

namespace rz::optim::checkpoint {

// 'name', with everything that is not printable ASCII as \xNN, cut after 200 characters.
inline std::string printable(std::string_view name) {
  std::string out = "'";
  for (const char c : name.substr(0, 200)) {
    if (c >= 0x20 && c < 0x7f)
      out += c;
    else
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return out + (name.size() > 200 ? "...'" : "'");
}

}  // namespace rz::optim::checkpoint
