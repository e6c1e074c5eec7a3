#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace rz::optim {

double Schedule::at(int64_t step) const {
  if (step < warmup_steps) return learning_rate * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (kind == Kind::constant) return learning_rate;
  const double length = static_cast<double>(std::max<int64_t>(1, total_steps - warmup_steps));
  const double progress = std::clamp(static_cast<double>(step - warmup_steps) / length, 0.0, 1.0);
  const double weight = kind == Kind::linear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return final_learning_rate + (learning_rate - final_learning_rate) * weight;
}

}  // namespace rz::optim
