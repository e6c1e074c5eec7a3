// Progress lines, the bar, and the curve as text, with a clock and an output of the test's own.
#include "tools/progress.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tools/loss_chart.h"
#include "tools/terminal.h"

namespace rz::tools {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Screen {
  double now = 100;
  std::string text;
  Progress make(int64_t first, int64_t last, TerminalStyle style) {
    return Progress(
        first, last, style, "tokens", [this](std::string_view part) { text += part; }, [this] { return now; });
  }
  int64_t lines() const { return std::count(text.begin(), text.end(), '\n'); }
};

// Columns that a line takes, for text that is ASCII but for three-byte characters.
size_t columns(std::string_view line) {
  return static_cast<size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

TEST(Progress, PlainLinesAreFew) {
  Screen screen;
  auto progress = screen.make(0, 2000, {});
  for (int64_t step = 1; step <= 2000; ++step) {
    screen.now += 0.15;
    progress.step(step, 4.0 / static_cast<double>(step), 1505);
  }
  progress.finish();
  EXPECT_GE(screen.lines(), 15);
  EXPECT_LE(screen.lines(), 25);
  EXPECT_THAT(screen.text, AllOf(HasSubstr("step 1/2000  loss 4.0000  10.0k tokens/s  5m 00s left\n"),
                                 HasSubstr("step 2000/2000  loss 0.0020  10.0k tokens/s\n")));
  EXPECT_THAT(screen.text, Not(HasSubstr("\r")));
}

TEST(Progress, SlowStepsAreReportedAnyway) {
  Screen screen;
  auto progress = screen.make(0, 100000, {});
  for (int64_t step = 1; step <= 5; ++step) {
    screen.now += 31;
    progress.step(step, 1, 1);
  }
  EXPECT_EQ(screen.lines(), 5);
}

TEST(Progress, FastShortRunsPrintFirstAndLast) {
  Screen screen;
  auto progress = screen.make(10, 30, {});
  for (int64_t step = 11; step <= 30; ++step) {
    screen.now += 0.001;
    progress.step(step, 1, 1);
  }
  EXPECT_EQ(screen.lines(), 2);
  EXPECT_THAT(screen.text, AllOf(HasSubstr("step 11/30"), HasSubstr("step 30/30")));
}

TEST(Progress, TheBarRedrawsOneLineThatFits) {
  for (const int width : {20, 40, 60, 80, 200}) {
    for (const bool utf8 : {false, true}) {
      Screen screen;
      auto progress = screen.make(0, 1000, {.is_terminal = true, .utf8 = utf8, .columns = width});
      for (int64_t step = 1; step <= 1000; ++step) {
        screen.now += 0.02;
        progress.step(step, 1.2345, 1000);
      }
      EXPECT_EQ(screen.lines(), 0);
      size_t draws = 0;
      for (size_t at = screen.text.find('\r'); at != std::string::npos; at = screen.text.find('\r', at + 1), ++draws) {
        const size_t end = screen.text.find("\x1b[K", at);
        ASSERT_NE(end, std::string::npos);
        EXPECT_LT(columns(std::string_view(screen.text).substr(at + 1, end - at - 1)), static_cast<size_t>(width));
      }
      EXPECT_GT(draws, 50u);
      EXPECT_LT(draws, 260u);
      EXPECT_THAT(screen.text, HasSubstr("100%"));
      progress.finish();
      EXPECT_EQ(screen.lines(), 1);
      progress.finish();
      EXPECT_EQ(screen.lines(), 1);
    }
  }
}

TEST(Progress, LinesStayAboveTheBar) {
  Screen screen;
  auto progress = screen.make(0, 10, {.is_terminal = true, .utf8 = false, .columns = 80});
  progress.line("before");
  screen.now += 1;
  progress.step(1, 1, 10);
  progress.line("validation loss 1.5");
  EXPECT_THAT(screen.text, AllOf(::testing::StartsWith("before\n\r"), HasSubstr("\rvalidation loss 1.5\x1b[K\n 10% ##.")));
}

TEST(Progress, QuantitiesAndDurations) {
  EXPECT_EQ(format_duration(12.4), "12s");
  EXPECT_EQ(format_duration(185), "3m 05s");
  EXPECT_EQ(format_duration(3720), "1h 02m");
  EXPECT_EQ(format_duration(200000), "2d 07h");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_duration(1e300), fmt::format("{}", format_duration(1e15)));
  EXPECT_EQ(format_quantity(950), "950");
  EXPECT_EQ(format_quantity(9999), "9999");
  EXPECT_EQ(format_quantity(12345), "12.3k");
  EXPECT_EQ(format_quantity(4560000), "4.56M");
  EXPECT_EQ(format_quantity(1.5e9), "1.50G");
}

TEST(Progress, OutputOfTestsIsNoTerminalOrHasColumns) {
  const TerminalStyle style = detect_terminal();
  EXPECT_GE(style.columns, 20);
}

std::vector<CurvePoint> falling(int count) {
  std::vector<CurvePoint> points;
  for (int i = 1; i <= count; ++i) points.push_back({i, 1.5 + 3 * std::exp(-i / (count / 5.0))});
  return points;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

TEST(LossChart, AsciiPicture) {
  const std::vector<CurvePoint> points = {{1, 4}, {2, 3}, {3, 2}, {4, 1}, {5, 1}, {6, 1}, {7, 1}, {8, 1}, {9, 1}, {10, 1}};
  EXPECT_EQ(draw_curve(points, "loss", {.columns = 10, .rows = 4, .utf8 = false}),
            "loss\n"
            "4 +*\n"
            "  | *\n"
            "  |  *\n"
            "1 +   *******\n"
            "  +----------\n"
            "   1       10\n");
}

TEST(LossChart, BrailleFitsAndFalls) {
  const auto points = falling(2000);
  const std::string chart = draw_curve(points, "loss", {.columns = 60, .rows = 12, .utf8 = true});
  const auto lines = split_lines(chart);
  ASSERT_EQ(lines.size(), 15u);
  EXPECT_THAT(lines[1], ::testing::StartsWith("4.433 ┤"));
  EXPECT_THAT(lines[12], HasSubstr("┤"));
  EXPECT_THAT(lines[14], AllOf(HasSubstr("1 "), ::testing::EndsWith("2000")));
  for (const auto& line : lines) EXPECT_LE(columns(line), 60u + 7u);
  // Every column of the plot shows the curve: the last row of the plot ends at the right edge.
  EXPECT_EQ(columns(lines[12]), 60u + 7u);
}

TEST(LossChart, FewFlatAndBrokenCurves) {
  EXPECT_EQ(draw_curve({}, "x", {}), "");
  const std::vector<CurvePoint> lost = {{1, std::nan("")}, {2, INFINITY}};
  EXPECT_EQ(draw_curve(lost, "x", {}), "");
  const std::vector<CurvePoint> one = {{5, 2.5}};
  EXPECT_THAT(draw_curve(one, "", {}), HasSubstr("2.5"));
  const std::vector<CurvePoint> flat = {{1, 2}, {100, 2}};
  // Two points far apart are joined by a line.
  EXPECT_THAT(draw_curve(flat, "", {.columns = 20, .rows = 3, .utf8 = false}), HasSubstr(std::string(20, '*')));
  const std::vector<CurvePoint> gap = {{1, 2}, {2, std::nan("")}, {3, 1}};
  EXPECT_THAT(draw_curve(gap, "", {}), HasSubstr("1 of 3 values are not finite"));
  EXPECT_NO_THROW(draw_curve(falling(50), "tiny", {.columns = -5, .rows = 0, .utf8 = true}));
}

}  // namespace
}  // namespace rz::tools
