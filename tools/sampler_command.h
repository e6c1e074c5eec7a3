// ringzero sampler: a sampler's exact output distribution in a Gaussian world, and replays of published scheduler tests.
#pragma once

#include <CLI/CLI.hpp>

namespace rz::tools {

void add_sampler_command(CLI::App& app);

}  // namespace rz::tools
