// The table stage x ranks as a picture: for each number of ranks a bar per stage, stacked by category, at the peak of the
// fullest rank; a line marks what was measured.
#pragma once

#include <string>
#include <vector>

#include "tools/chart_drawing.h"
#include "tools/memory_table.h"

namespace rz::tools {

// The colour of a category in every picture.
Color category_color(Category category);

Drawing draw_memory(const std::string& title, const std::vector<MemoryCell>& cells);

}  // namespace rz::tools
