// `ringzero simulate RUN_DIR`: what a step of a recorded run would take in other configurations.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

void add_simulate_command(CLI::App& app);

}  // namespace rz::tools
