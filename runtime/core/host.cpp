#include "runtime/core/host.h"

#include <unistd.h>

namespace rz {

std::string host_name() {
  char text[256] = {};
  return gethostname(text, sizeof text - 1) == 0 ? text : "unknown";
}

}  // namespace rz
