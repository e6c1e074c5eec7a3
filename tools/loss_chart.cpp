// Vocabulary: a cell is a character of the plot; a dot is the smallest mark, of which a braille cell has 2 x 4 and an ASCII cell
// one.
#include "tools/loss_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace rz::tools {
namespace {

class Canvas {
 public:
  Canvas(int columns, int rows, bool braille)
      : columns_(columns), rows_(rows), braille_(braille), cells_(static_cast<size_t>(columns) * static_cast<size_t>(rows), 0) {}

  int dots_wide() const { return columns_ * (braille_ ? 2 : 1); }
  int dots_high() const { return rows_ * (braille_ ? 4 : 1); }

  void mark(int x, int y) {
    if (!braille_) {
      at(x, y) = 1;
      return;
    }
    // Unicode numbers a braille cell's dots down the left column, down the right one, then the two at the bottom.
    static constexpr uint8_t kDots[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    at(x / 2, y / 4) |= kDots[y % 4][x % 2];
  }

  std::string row(int y) const {
    std::string out;
    for (int x = 0; x < columns_; ++x) {
      const uint8_t cell = cells_[index(x, y)];
      if (cell == 0) {
        out += ' ';
      } else if (!braille_) {
        out += '*';
      } else {  // U+2800 + cell in UTF-8
        out += static_cast<char>(0xE2);
        out += static_cast<char>(0xA0 | (cell >> 6));
        out += static_cast<char>(0x80 | (cell & 0x3F));
      }
    }
    return out.substr(0, out.find_last_not_of(' ') + 1);
  }

 private:
  size_t index(int x, int y) const { return static_cast<size_t>(y) * static_cast<size_t>(columns_) + static_cast<size_t>(x); }
  uint8_t& at(int x, int y) { return cells_[index(x, y)]; }

  int columns_;
  int rows_;
  bool braille_;
  std::vector<uint8_t> cells_;
};

// The mean of each column of dots; NaN where no point falls.
std::vector<double> column_means(std::span<const CurvePoint> points, int columns) {
  std::vector<double> sums(static_cast<size_t>(columns), 0);
  std::vector<int64_t> counts(static_cast<size_t>(columns), 0);
  const auto first = static_cast<double>(points.front().step);
  const double span = std::max(1.0, static_cast<double>(points.back().step) - first);
  for (const auto& point : points) {
    if (!std::isfinite(point.value)) continue;
    const auto column =
        static_cast<size_t>(std::clamp((static_cast<double>(point.step) - first) / span * (columns - 1), 0.0, columns - 1.0));
    sums[column] += point.value;
    ++counts[column];
  }
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = counts[i] > 0 ? sums[i] / static_cast<double>(counts[i]) : std::nan("");
  return sums;
}

// Marks the curve: neighbouring means are joined, so that a steep fall stays a line.
void plot(Canvas& canvas, const std::vector<double>& means, double low, double high) {
  const int top = canvas.dots_high() - 1;
  const auto height_of = [&](double value) {
    return high > low ? static_cast<int>(std::lround((high - value) / (high - low) * top)) : top / 2;
  };
  int previous_x = -1;
  int previous_y = 0;
  for (int x = 0; x < canvas.dots_wide(); ++x) {
    const double mean = means[static_cast<size_t>(x)];
    if (std::isnan(mean)) continue;
    const int y = height_of(mean);
    for (int between = previous_x + 1; previous_x >= 0 && between < x; ++between) {  // columns without a point: interpolate
      canvas.mark(between, previous_y + (y - previous_y) * (between - previous_x) / (x - previous_x));
    }
    const int from = previous_x < 0 || std::abs(y - previous_y) <= 1 ? y : previous_y + (y > previous_y ? 1 : -1);
    for (int mark_y = std::min(from, y); mark_y <= std::max(from, y); ++mark_y) canvas.mark(x, mark_y);
    previous_x = x;
    previous_y = y;
  }
}

}  // namespace

std::string draw_curve(std::span<const CurvePoint> points, const std::string& title, const ChartStyle& style) {
  if (points.empty()) return "";
  const int columns = std::max(style.columns, 10);
  const int rows = std::max(style.rows, 2);
  Canvas canvas(columns, rows, style.utf8);
  const auto means = column_means(points, canvas.dots_wide());
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
  for (const double mean : means) {
    if (std::isnan(mean)) continue;
    low = std::min(low, mean);
    high = std::max(high, mean);
  }
  if (low > high) return "";
  plot(canvas, means, low, high);

  const std::string top = fmt::format("{:.4g}", high);
  const std::string bottom = fmt::format("{:.4g}", low);
  const size_t margin = std::max(top.size(), bottom.size());
  const char* side = style.utf8 ? "│" : "|";
  const char* tick = style.utf8 ? "┤" : "+";
  std::string out = title.empty() ? "" : title + "\n";
  for (int y = 0; y < rows; ++y) {
    const bool labelled = y == 0 || y == rows - 1;
    out += fmt::format("{:>{}} {}{}\n", y == 0 ? top : y == rows - 1 ? bottom : "", margin, labelled ? tick : side, canvas.row(y));
  }
  out += fmt::format("{:>{}} {}", "", margin, style.utf8 ? "└" : "+");
  for (int x = 0; x < columns; ++x) out += style.utf8 ? "─" : "-";
  const std::string last = fmt::format("{}", points.back().step);
  out += fmt::format("\n{:>{}} {:<{}}{}\n", "", margin + 1, points.front().step, std::max<int>(columns - static_cast<int>(last.size()), 1),
                     last);
  const auto lost = std::count_if(points.begin(), points.end(), [](const CurvePoint& p) { return !std::isfinite(p.value); });
  if (lost > 0) out += fmt::format("{} of {} values are not finite and not drawn\n", lost, points.size());
  return out;
}

}  // namespace rz::tools
