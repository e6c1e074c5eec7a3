// A sweep as a picture: step time, compute and exposed communication over what was varied.
#pragma once

#include <string>

#include "tools/chart_drawing.h"
#include "tools/overlap/sweep.h"

namespace rz::tools {

Drawing draw_sweep(const std::string& title, const Sweep& sweep);

}  // namespace rz::tools
