#include "optim/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "runtime/core/error.h"

namespace rz::optim {

LossScaler::LossScaler(const LossScaling& s) : scaling_(s) {
  if (!s.enabled) return;
  RZ_CONFIG_CHECK(s.smallest > 0 && s.initial >= s.smallest && s.initial <= s.largest && std::isfinite(s.largest),
                  "the initial loss scale {} must lie between the smallest, {} (above 0), and the largest, {}", s.initial, s.smallest,
                  s.largest);
  RZ_CONFIG_CHECK(s.growth > 1 && s.backoff > 0 && s.backoff < 1,
                  "the loss scale must grow by a factor above 1, not {}, and shrink by one in (0, 1), not {}", s.growth, s.backoff);
  RZ_CONFIG_CHECK(s.growth_interval >= 1, "the loss scale must grow after at least one step, not {}", s.growth_interval);
  state_.scale = s.initial;
}

void LossScaler::applied() {
  if (!scaling_.enabled || ++state_.good_steps < scaling_.growth_interval) return;
  state_.good_steps = 0;
  state_.scale = std::min(state_.scale * scaling_.growth, scaling_.largest);
}

void LossScaler::skipped() {
  RZ_CHECK(can_skip(), "a step may not be skipped at a loss scale of {}", state_.scale);
  ++state_.skipped_steps;
  state_.good_steps = 0;
  state_.scale = std::max(state_.scale * scaling_.backoff, scaling_.smallest);
}

void LossScaler::restore(const LossScalerState& state) {
  RZ_CHECK(state.skipped_steps >= 0 && state.good_steps >= 0 && state.scale > 0 && std::isfinite(state.scale),
           "not the state of a loss scaler: scale {}, {} steps since it changed, {} skipped", state.scale, state.good_steps,
           state.skipped_steps);
  state_.skipped_steps = state.skipped_steps;
  if (!scaling_.enabled) return;
  state_.scale = std::clamp(state.scale, scaling_.smallest, scaling_.largest);
  state_.good_steps = state.good_steps;
}

}  // namespace rz::optim
