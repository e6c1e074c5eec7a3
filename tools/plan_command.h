// ringzero plan JOB: what a rank will hold and send, before the run and without its memory.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command.
void add_plan_command(CLI::App& app);

}  // namespace rz::tools
