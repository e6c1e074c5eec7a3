// ringzero sample DIR: text or images from a trained run.
#pragma once

#include <CLI/CLI.hpp>

#include "tools/image_sample.h"

namespace rz::tools {

// Flags of sampling images, shared with `evaluate`.
void add_image_flags(CLI::App& command, ImageSampleOptions& options);

// Adds the command; running it sets `exit_code`.
void add_sample_command(CLI::App& app, int& exit_code);

}  // namespace rz::tools
