// ringzero memory: predicted and measured memory by stage and ranks, the ZeRO paper's tables, the largest model that fits.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command.
void add_memory_command(CLI::App& app);

}  // namespace rz::tools
