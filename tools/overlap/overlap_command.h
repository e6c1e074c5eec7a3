// ringzero overlap RUN_DIR: where the time of a run's steps went, and why.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command.
void add_overlap_command(CLI::App& app);

}  // namespace rz::tools
