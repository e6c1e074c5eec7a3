// ringzero train JOB: trains a job on the ranks that mpirun started, or on threads.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command; running it sets `exit_code`.
void add_train_command(CLI::App& app, int& exit_code);

}  // namespace rz::tools
