// ringzero collectives: times and checks the collectives, with the columns of nccl-tests.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command. Running it prints a table (rank 0); errors and wrong results leave the parser as CLI::RuntimeError with
// the exit code, or as ConfigError for bad flags.
void add_collectives_command(CLI::App& app);

}  // namespace rz::tools
