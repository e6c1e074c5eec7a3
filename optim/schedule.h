// The learning rate as a function of the step: linear warm-up from 0, then constant, linear or half-cosine to a final value.
#pragma once

#include <cstdint>

namespace rz::optim {

struct Schedule {
  enum class Kind : uint8_t { constant, linear, cosine };
  Kind kind = Kind::cosine;
  double learning_rate = 1e-3;        // after warm-up
  double final_learning_rate = 0;     // reached when all steps are done (linear, cosine): the last one is still above it
  int64_t warmup_steps = 0;           // step s < warmup_steps has learning_rate * (s + 1) / warmup_steps
  int64_t total_steps = 1;

  // The rate of step `step`, counted from 0.
  double at(int64_t step) const;
};

}  // namespace rz::optim
