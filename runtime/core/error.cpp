#include "runtime/core/error.h"

namespace rz::detail {

void throw_check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::string_view path(file);
  for (const char* top : {"/runtime/", "/comm/", "/optim/", "/models/", "/tools/"}) {
    if (const auto at = path.rfind(top); at != std::string_view::npos) {
      path.remove_prefix(at + 1);
      break;
    }
  }
  throw Error(fmt::format("{} [{} at {}:{}]", message, condition, path, line));
}

}  // namespace rz::detail
