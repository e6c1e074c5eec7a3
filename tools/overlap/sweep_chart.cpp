#include "tools/overlap/sweep_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/core/error.h"

namespace rz::tools {

namespace {

constexpr Color kInk{0x22, 0x22, 0x22};
constexpr Color kFaint{0xdd, 0xdd, 0xdd};
constexpr Color kGrey{0x66, 0x66, 0x66};

struct Curve {
  const char* label;
  Color color;
  double StepTiming::*value;
};
// Told apart by people who do not see red and green apart, too.
constexpr Curve kCurves[] = {{"step", {0x1f, 0x4e, 0x8c}, &StepTiming::step_ms},
                             {"compute", {0x7a, 0xb3, 0x55}, &StepTiming::compute_ms},
                             {"exposed communication", {0xe0, 0x8a, 0x1e}, &StepTiming::exposed_ms}};

constexpr double kLeft = 74;
constexpr double kTop = 64;
constexpr double kPlotHeight = 300;
constexpr double kPlotWidth = 560;
constexpr double kBottom = 62;
constexpr double kRight = 34;

// Above this ratio of the longest to the shortest step the axis is logarithmic.
constexpr double kWide = 20;
// It reaches down to the shortest compute, or so far: what is exposed may be nothing at all.
constexpr double kDeepest = 1e5;

class Axis {
 public:
  Axis(double least, double most, bool logarithmic) : logarithmic_(logarithmic) {
    const double power = std::pow(10.0, std::floor(std::log10(most)));
    for (const double f : {1.0, 2.0, 5.0, 10.0})
      if (most <= f * power) {
        top_ = f * power;
        break;
      }
    bottom_ = logarithmic ? std::pow(10.0, std::floor(std::log10(least))) : 0;
  }

  // 0 = the floor, 1 = the top.
  double height(double value) const {
    if (!logarithmic_) return value / top_;
    return std::clamp(std::log(std::max(value, bottom_) / bottom_) / std::log(top_ / bottom_), 0.0, 1.0);
  }
  std::vector<double> ticks() const {
    std::vector<double> out;
    if (!logarithmic_) {
      for (int i = 0; i <= 5; ++i) out.push_back(top_ * i / 5);
      return out;
    }
    for (double power = bottom_; power <= top_ * 1.001; power *= 10)
      for (const double f : {1.0, 2.0, 5.0})
        if (f * power <= top_ * 1.001) out.push_back(f * power);
    return out;
  }

 private:
  bool logarithmic_;
  double bottom_ = 0;
  double top_ = 1;
};

std::string axis_label(SweepOver over) {
  switch (over) {
    case SweepOver::ranks:
      return "ranks";
    case SweepOver::link:
      return "link";
    case SweepOver::bucket:
      return "bucket, MiB";
    case SweepOver::stage:
      return "stage";
  }
  return {};
}

// Numbers at a glance: three digits.
std::string point_label(const SweepPoint& point, SweepOver over) {
  return over == SweepOver::bucket ? fmt::format("{:.3g}", point.prediction.bucket_mb) : point.label;
}

}  // namespace

Drawing draw_sweep(const std::string& title, const Sweep& sweep) {
  RZ_CHECK(!sweep.points.empty(), "there is nothing to draw");
  double least = std::numeric_limits<double>::infinity(), lowest = least, most = 0;
  for (const SweepPoint& p : sweep.points) {
    least = std::min(least, p.prediction.run.timing.step_ms);
    most = std::max(most, p.prediction.run.timing.step_ms);
    lowest = std::min(lowest, p.prediction.run.timing.compute_ms);
  }
  const Axis axis(std::max(lowest, most / kDeepest), most, most > kWide * least);
  const double floor = kTop + kPlotHeight;
  Drawing drawing(kLeft + kPlotWidth + kRight, floor + kBottom);
  drawing.text(kLeft, 24, 12, title, kInk);
  double x = kLeft;
  for (const Curve& curve : kCurves) {
    drawing.line(x, 42, x + 14, 42, 2.5, curve.color);
    drawing.text(x + 18, 46, 11, curve.label, kInk);
    x += 40 + 7.0 * static_cast<double>(std::string(curve.label).size());
  }
  for (const double tick : axis.ticks()) {
    const double y = floor - axis.height(tick) * kPlotHeight;
    drawing.rectangle(kLeft, y, kPlotWidth, 1, axis.height(tick) == 0 ? kInk : kFaint);
    drawing.text(kLeft - 6, y + 4, 10, fmt::format("{:g} ms", tick), kInk, Anchor::end);
  }
  const double gap = kPlotWidth / static_cast<double>(sweep.points.size());
  const auto place = [&](size_t i) { return kLeft + gap * (static_cast<double>(i) + 0.5); };
  for (const Curve& curve : kCurves) {
    for (size_t i = 0; i < sweep.points.size(); ++i) {
      const auto y = [&](size_t k) { return floor - axis.height(sweep.points[k].prediction.run.timing.*curve.value) * kPlotHeight; };
      if (i > 0) drawing.line(place(i - 1), y(i - 1), place(i), y(i), 2, curve.color);
      drawing.rectangle(place(i) - 2.5, y(i) - 2.5, 5, 5, curve.color);
    }
  }
  const size_t every = sweep.points.size() > 10 ? 2 : 1;
  for (size_t i = 0; i < sweep.points.size(); i += every)
    drawing.text(place(i), floor + 16, sweep.points.size() > 8 ? 8 : 10, point_label(sweep.points[i], sweep.over), kInk, Anchor::middle);
  drawing.text(kLeft + kPlotWidth / 2, floor + 34, 11, axis_label(sweep.over), kInk, Anchor::middle);
  const SweepPoint& best = sweep.best();
  drawing.text(
      kLeft, floor + 52, 10,
      fmt::format("simulated; most tokens per second: {:.0f}, at {}", best.prediction.run.tokens_per_s, point_label(best, sweep.over)),
      kGrey);
  return drawing;
}

}  // namespace rz::tools
