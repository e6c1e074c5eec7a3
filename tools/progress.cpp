#include "tools/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

namespace rz::tools {
namespace {

constexpr double kRedrawSeconds = 0.1;  // on a terminal, at most this often
constexpr double kSilentSeconds = 30;   // elsewhere, a line at least this often,
constexpr int64_t kLines = 20;          // and at every twentieth of the run
constexpr double kPlainSeconds = 1;     // but not more often than this
constexpr size_t kRecentSteps = 50;
constexpr size_t kBarColumns = 30;

double steady_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void write_stdout(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(std::min(std::round(seconds), 1e15));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m {:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h {:02}m", whole / 3600, whole / 60 % 60);
  return fmt::format("{}d {:02}h", whole / 86400, whole / 3600 % 24);
}

std::string format_quantity(double value) {
  struct Unit {
    double from;  // values from here on
    double scale;
    const char* suffix;
  };
  for (const Unit& unit : {Unit{1e9, 1e9, "G"}, Unit{1e6, 1e6, "M"}, Unit{1e4, 1e3, "k"}}) {
    if (value < unit.from) continue;
    const double scaled = value / unit.scale;
    return fmt::format("{:.{}f}{}", scaled, scaled < 10 ? 2 : scaled < 100 ? 1 : 0, unit.suffix);
  }
  return fmt::format("{:.0f}", value);
}

Progress::Progress(int64_t first_step, int64_t last_step, TerminalStyle style, std::string items, Write write, Clock clock)
    : first_step_(first_step),
      last_step_(last_step),
      style_(style),
      items_(std::move(items)),
      write_(write ? std::move(write) : write_stdout),
      clock_(clock ? std::move(clock) : steady_seconds) {
  const double now = clock_();
  recent_.push_back({now, 0});
  last_output_ = now - kSilentSeconds;
}

std::string Progress::status(int64_t step, double loss) const {
  const double seconds = recent_.back().time - recent_.front().time;
  const auto steps = static_cast<double>(recent_.size() - 1);
  int64_t items = 0;
  for (size_t i = 1; i < recent_.size(); ++i) items += recent_[i].items;
  std::string out = fmt::format("step {}/{}  loss {:.4f}", step, last_step_, loss);
  if (seconds > 0 && steps > 0) {
    out += fmt::format("  {} {}/s", format_quantity(static_cast<double>(items) / seconds), items_);
    if (step < last_step_) out += fmt::format("  {} left", format_duration(seconds / steps * static_cast<double>(last_step_ - step)));
  }
  return out;
}

std::string Progress::bar(int64_t step, const std::string& status) const {
  const auto columns = static_cast<size_t>(style_.columns) - 1;  // the last column would wrap
  const double share =
      last_step_ > first_step_ ? static_cast<double>(step - first_step_) / static_cast<double>(last_step_ - first_step_) : 1.0;
  const std::string percent = fmt::format("{:3.0f}% ", std::floor(share * 100));
  const size_t room =
      columns > percent.size() + status.size() + 3 ? std::min(kBarColumns, columns - percent.size() - status.size() - 3) : 0;
  std::string out = percent;
  if (room >= 5) {
    const auto full = static_cast<size_t>(share * static_cast<double>(room));
    for (size_t i = 0; i < room; ++i) out += i < full ? (style_.utf8 ? "█" : "#") : (style_.utf8 ? "░" : ".");
    out += "  ";
  }
  return out + status.substr(0, columns - std::min(columns, percent.size()));
}

void Progress::step(int64_t step, double loss, int64_t items) {
  const double now = clock_();
  recent_.push_back({now, items});
  if (recent_.size() > kRecentSteps) recent_.pop_front();
  const bool edge = step == last_step_ || step == first_step_ + 1;
  if (style_.is_terminal) {
    if (!edge && now - last_output_ < kRedrawSeconds) return;
    shown_ = bar(step, status(step, loss));
    // Carriage return, the line, erase what is left of a longer one.
    write_("\r" + shown_ + "\x1b[K");
  } else {
    const int64_t total = std::max<int64_t>(last_step_ - first_step_, 1);
    const auto part =
        static_cast<int64_t>(static_cast<double>(step - first_step_) / static_cast<double>(total) * static_cast<double>(kLines));
    const bool due = (part != last_part_ && now - last_output_ >= kPlainSeconds) || now - last_output_ >= kSilentSeconds;
    if (!edge && !due) return;
    last_part_ = part;
    write_(status(step, loss) + "\n");
  }
  last_output_ = now;
}

void Progress::line(std::string_view text) {
  if (shown_.empty()) {
    write_(fmt::format("{}\n", text));
  } else {
    write_(fmt::format("\r{}\x1b[K\n{}", text, shown_));
  }
}

void Progress::finish() {
  if (!shown_.empty()) write_("\n");
  shown_.clear();
}

}  // namespace rz::tools
