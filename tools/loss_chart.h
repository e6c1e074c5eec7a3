// A curve as text, for the end of a run and for logs: braille dots where the terminal shows UTF-8, ASCII otherwise.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace rz::tools {

struct CurvePoint {
  int64_t step = 0;
  double value = 0;
};

struct ChartStyle {
  int columns = 60;  // of the plot, without its axis; at least 10
  int rows = 12;     // at least 2
  bool utf8 = false;
};

// The curve with its least and greatest value and its first and last step. Points must ascend by step; several that fall into one
// column are averaged; values that are not finite leave gaps and are counted below. Empty when there is no finite value.
std::string draw_curve(std::span<const CurvePoint> points, const std::string& title, const ChartStyle& style);

}  // namespace rz::tools
