// ringzero evaluate DIR: how good a diffusion run's images are.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// Adds the command; running it sets `exit_code`.
void add_evaluate_command(CLI::App& app, int& exit_code);

}  // namespace rz::tools
