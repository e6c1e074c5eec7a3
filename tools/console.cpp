#include "tools/console.h"

#include <cstdlib>
#include <string>

namespace rz::tools {

namespace {
int environment_number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  const int value = std::atoi(text);
  return value >= 0 ? value : otherwise;
}
}  // namespace

bool is_speaker() { return environment_number("OMPI_COMM_WORLD_RANK", 0) == 0; }

int ranks_on_this_machine() {
  const int ranks = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
  return ranks > 0 ? ranks : 1;
}

}  // namespace rz::tools
