// ringzero sample DIR: text from a trained run.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command; running it sets `exit_code`.
void add_sample_command(CLI::App& app, int& exit_code);

}  // namespace rz::tools
