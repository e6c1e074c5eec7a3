#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

// `ringzero bench`: see bench.h.
void add_bench_command(CLI::App& app, int& exit_code);

}  // namespace rz::tools
