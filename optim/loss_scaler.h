// Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2): the loss is multiplied before
// backward so that small gradients do not vanish, and the gradients divided before they are used. The scale grows while nothing
// overflows; a step whose gradient is not finite is skipped and makes it smaller.
// Knows no ranks: it follows decisions that the caller takes from numbers that are the same on every rank.
#pragma once

#include <cstdint>

namespace rz::optim {

struct LossScaling {
  bool enabled = false;    // false: the scale is 1 and nothing is ever skipped
  double initial = 65536;  // powers of two scale without rounding
  double growth = 2;       // factor after `growth_interval` steps without an overflow, above 1
  double backoff = 0.5;    // factor after an overflow, in (0, 1)
  int64_t growth_interval = 2000;
  double smallest = 1;        // an overflow at this scale is an error: shrinking does not help
  double largest = 16777216;  // 2^24
};

// What a checkpoint keeps.
struct LossScalerState {
  double scale = 1;
  int64_t good_steps = 0;     // since the scale last changed
  int64_t skipped_steps = 0;  // in all
};

class LossScaler {
 public:
  // ConfigError for settings that make no sense.
  explicit LossScaler(const LossScaling& scaling);

  double scale() const { return state_.scale; }
  // An overflow now may be skipped.
  bool can_skip() const { return scaling_.enabled && state_.scale > scaling_.smallest; }
  // After a step that was applied, or skipped.
  void applied();
  void skipped();

  int64_t skipped_steps() const { return state_.skipped_steps; }
  const LossScalerState& state() const { return state_; }
  // The scale of a state is taken only when scaling is enabled; skipped steps are always counted on.
  void restore(const LossScalerState& state);

 private:
  LossScaling scaling_;
  LossScalerState state_;
};

}  // namespace rz::optim
