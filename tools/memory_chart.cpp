#include "tools/memory_chart.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace rz::tools {

namespace {

constexpr Color kInk{0x22, 0x22, 0x22};
constexpr Color kFaint{0xdd, 0xdd, 0xdd};
constexpr Color kGrey{0x66, 0x66, 0x66};
constexpr double kBar = 44;
constexpr double kGap = 8;
constexpr double kGroupGap = 34;
constexpr double kLeft = 74;
constexpr double kTop = 84;
constexpr double kPlot = 300;
constexpr double kBottom = 62;
constexpr double kRight = 24;
constexpr double kLeastWidth = 640;

void draw_legend(Drawing& drawing, const std::vector<MemoryCell>& cells, bool measured) {
  double x = kLeft;
  double y = 46;
  const auto entry = [&](const std::string& label, Color color, double height) {
    const double width = 24 + 7.0 * static_cast<double>(label.size());
    if (x + width > kLeastWidth) x = kLeft, y += 18;
    drawing.rectangle(x, y - 5 - height / 2, 12, height, color);
    drawing.text(x + 16, y, 11, label, kInk);
    x += width;
  };
  for (size_t c = 0; c < kCategories; ++c) {
    const bool used = std::ranges::any_of(cells, [c](const MemoryCell& cell) { return cell.fullest_predicted().memory.peak.at_total_peak[c] > 0; });
    if (used) entry(name(static_cast<Category>(c)), category_color(static_cast<Category>(c)), 10);
  }
  if (measured) entry("measured", kInk, 2);
}

}  // namespace

Color category_color(Category category) {
  // In the order of Category; told apart by people who do not see red and green apart, too.
  constexpr std::array<Color, kCategories> kColors = {{
      {0x1f, 0x4e, 0x8c},  // parameter
      {0xe0, 0x8a, 0x1e},  // gradient
      {0x5b, 0xa3, 0xcf},  // optimizer_state
      {0x7a, 0xb3, 0x55},  // activation
      {0xc9, 0xd9, 0x6f},  // activation_gradient
      {0xb2, 0x4a, 0x6e},  // communication
      {0x8c, 0x8c, 0x8c},  // workspace
      {0xc8, 0xb8, 0x9a},  // input
  }};
  return kColors[static_cast<size_t>(category)];
}

Drawing draw_memory(const std::string& title, const std::vector<MemoryCell>& cells) {
  RZ_CHECK(!cells.empty(), "there is nothing to draw");
  std::vector<int> groups;
  for (const MemoryCell& cell : cells)
    if (std::ranges::find(groups, cell.ranks) == groups.end()) groups.push_back(cell.ranks);
  double most = 1;
  bool measured = false;
  for (const MemoryCell& cell : cells) {
    most = std::max(most, static_cast<double>(cell.fullest_predicted().memory.peak.total));
    measured = measured || !cell.measured.empty();
  }
  const double step = grid_step(most);
  const double top = std::ceil(most / step) * step;
  const double bars = static_cast<double>(cells.size()) * (kBar + kGap) + static_cast<double>(groups.size()) * kGroupGap;
  const double width = std::max(kLeastWidth, kLeft + bars + kRight);
  Drawing drawing(width, kTop + kPlot + kBottom);
  drawing.text(kLeft, 24, 12, title, kInk);
  draw_legend(drawing, cells, measured);

  const double floor = kTop + kPlot;
  const auto height_of = [&](double bytes) { return bytes / top * kPlot; };
  for (double value = 0; value <= top + step / 2; value += step) {
    drawing.rectangle(kLeft, floor - height_of(value), width - kLeft - kRight, 1, value == 0 ? kInk : kFaint);
    drawing.text(kLeft - 6, floor - height_of(value) + 4, 11, format_bytes(value), kInk, Anchor::end);
  }
  double x = kLeft + kGroupGap / 2;
  for (const int ranks : groups) {
    const double first = x;
    for (const MemoryCell& cell : cells) {
      if (cell.ranks != ranks) continue;
      const MemoryPeak& peak = cell.fullest_predicted().memory.peak;
      double base = floor;
      for (size_t c = 0; c < kCategories; ++c) {
        const double height = height_of(static_cast<double>(peak.at_total_peak[c]));
        base -= height;
        if (height > 0) drawing.rectangle(x, base, kBar, height, category_color(static_cast<Category>(c)));
      }
      drawing.text(x + kBar / 2, base - 5, 7, format_bytes(static_cast<double>(peak.total)), kGrey, Anchor::middle);
      if (!cell.measured.empty()) {
        const double mark = floor - height_of(static_cast<double>(cell.fullest_measured().memory.peak.total));
        drawing.rectangle(x - 3, mark - 1, kBar + 6, 2, kInk);
      }
      drawing.text(x + kBar / 2, floor + 16, 11, std::to_string(cell.stage), kInk, Anchor::middle);
      x += kBar + kGap;
    }
    drawing.text((first + x - kGap) / 2, floor + 34, 12, fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s"), kInk, Anchor::middle);
    x += kGroupGap;
  }
  drawing.text(kLeft - 6, floor + 16, 11, "stage", kGrey, Anchor::end);
  drawing.text(kLeft, floor + 54, 10, "peak of the fullest rank, by category at that moment", kGrey);
  return drawing;
}

}  // namespace rz::tools
