// Progress of a training run on standard output: one line that redraws itself on a terminal, a plain line now and then otherwise.
//
// Only rank 0 makes one. Prints nothing but what is described here, and keeps no history. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>

#include "tools/terminal.h"

namespace rz::tools {

// "1h 02m", "3m 05s", "12s"
std::string format_duration(double seconds);
// "950", "12.3k", "4.56M"
std::string format_quantity(double value);

class Progress {
 public:
  using Write = std::function<void(std::string_view)>;  // default: standard output, flushed
  using Clock = std::function<double()>;                // seconds; default: a steady clock

  // Steps first_step+1 ... last_step will follow. `items`: what is counted.
  Progress(int64_t first_step, int64_t last_step, TerminalStyle style, std::string items = "tokens", Write write = {}, Clock clock = {});

  // After each step: its number, loss, and the items that all ranks together processed in it.
  void step(int64_t step, double loss, int64_t items);
  // A line of its own that stays, such as a validation result; without a newline at its end.
  void line(std::string_view text);
  // After the last step, or before an error is printed: leaves the cursor at the start of an empty line.
  void finish();

 private:
  struct Sample {
    double time = 0;
    int64_t items = 0;
  };

  std::string status(int64_t step, double loss) const;
  std::string bar(int64_t step, const std::string& status) const;

  int64_t first_step_;
  int64_t last_step_;
  TerminalStyle style_;
  std::string items_;
  Write write_;
  Clock clock_;
  std::deque<Sample> recent_;  // the latest steps, from which speed and time left are taken
  double last_output_ = 0;
  int64_t last_part_ = -1;
  std::string shown_;  // what stands on the terminal's last line
};

}  // namespace rz::tools
