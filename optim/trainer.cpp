#include "optim/trainer.h"

#include <array>
#include <cmath>

namespace rz::optim {

Trainer::Trainer(ShardedModel& model, ShardedOptimizer& optimizer, const Schedule& schedule, double clip_norm, const LossScaling& scaling)
    : model_(model), optimizer_(optimizer), schedule_(schedule), clip_norm_(clip_norm), scaler_(scaling) {
  RZ_CONFIG_CHECK(clip_norm >= 0 && std::isfinite(clip_norm), "the gradient norm to clip at must be 0 (never) or positive, not {}",
                  clip_norm);
}

StepResult Trainer::step(int64_t step, const std::function<MicroLoss(int64_t)>& forward) {
  double loss_sum = 0;
  double count = 0;
  model_.begin_step();
  for (int64_t m = 0; m < model_.options().accumulation.micro_batches; ++m) {
    model_.begin_micro_batch(m);
    MicroLoss micro;
    {
      PhaseScope phase(Phase::forward);
      micro = forward(m);
    }
    model_.backward(micro.loss, scaler_.scale());
    loss_sum += micro.sum;
    count += static_cast<double>(micro.count);
  }
  // Each scalar's sum runs in the same order on every rank: all ranks decide alike.
  std::array<double, 3> global = {model_.shard_sum_of_squares(), loss_sum, count};
  model_.reduce_scalars(global);
  StepResult result;
  result.loss_scale = scaler_.scale();
  result.gradient_norm = std::sqrt(global[0]) / result.loss_scale;
  result.loss = global[1] / global[2];
  result.items = static_cast<int64_t>(global[2]);
  result.learning_rate = schedule_.at(step);
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
    // A smaller scale mends gradients, not the loss.
    if (!std::isfinite(result.loss) || !scaler_.can_skip()) fail(step, result);
    scaler_.skipped();
    result.skipped = true;
    return result;
  }
  const double clip = clip_norm_ > 0 && result.gradient_norm > clip_norm_ ? clip_norm_ / (result.gradient_norm + 1e-6) : 1.0;
  // Adam's bias correction counts the updates made, not the steps tried.
  optimizer_.update(step + 1 - scaler_.skipped_steps(), result.learning_rate, clip / result.loss_scale);
  model_.publish();
  scaler_.applied();
  return result;
}

void Trainer::fail(int64_t step, const StepResult& result) const {
  const std::string where = model_.first_non_finite_gradient();
  throw Error(fmt::format(
      "step {}: loss {} and gradient norm {} are not both finite{}{}", step, result.loss, result.gradient_norm,
      result.loss_scale != 1 ? fmt::format(" at a loss scale of {}", result.loss_scale) : "",
      where.empty() ? "; this rank's part of the gradient is finite" : "; first in this rank's part of the gradient: " + where));
}

}  // namespace rz::optim
