// What this program was built from and runs on.
#pragma once

#include <string>

namespace rz::tools {

// Version, compiler, flags, CPU level, libraries; one line each. Ranks with the same text round alike, but for their products.
std::string build_text();

// The build, and the machine: its CPU, and how matrices are multiplied on it.
std::string version_text();

// ConfigError naming the level unless this CPU has the instructions that the program was built for.
void require_cpu();

}  // namespace rz::tools
