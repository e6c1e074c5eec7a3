// What this program was built from and runs on.
#pragma once

#include <string>

namespace rz::tools {

// Version, compiler, flags, CPU level, libraries, CPU; one line each.
std::string version_text();

// ConfigError naming the level unless this CPU has the instructions that the program was built for.
void require_cpu();

}  // namespace rz::tools
