#include "optim/trainer.h"

#include <array>
#include <cmath>

namespace rz::optim {

Trainer::Trainer(ShardedModel& model, ShardedOptimizer& optimizer, const Schedule& schedule, double clip_norm)
    : model_(model), optimizer_(optimizer), schedule_(schedule), clip_norm_(clip_norm) {
  RZ_CONFIG_CHECK(clip_norm >= 0 && std::isfinite(clip_norm), "the gradient norm to clip at must be 0 (never) or positive, not {}", clip_norm);
}

StepResult Trainer::step(int64_t step, const std::function<MicroLoss(int64_t)>& forward) {
  double loss_sum = 0;
  double count = 0;
  // What is no other phase's is forward's: between its end and backward's begin the activations are held.
  PhaseScope step_phase(Phase::forward);
  model_.begin_step();
  for (int64_t m = 0; m < model_.options().accumulation.micro_batches; ++m) {
    model_.begin_micro_batch(m);
    const MicroLoss micro = forward(m);
    model_.backward(micro.loss);
    loss_sum += micro.sum;
    count += static_cast<double>(micro.count);
  }
  // Each scalar's sum runs in the same order on every rank: all ranks decide alike.
  std::array<double, 3> global = {model_.shard_sum_of_squares(), loss_sum, count};
  model_.reduce_scalars(global);
  StepResult result;
  result.gradient_norm = std::sqrt(global[0]);
  result.loss = global[1] / global[2];
  result.items = static_cast<int64_t>(global[2]);
  result.learning_rate = schedule_.at(step);
  RZ_CHECK(std::isfinite(result.loss) && std::isfinite(result.gradient_norm), "step {}: loss {} and gradient norm {} are not both finite", step,
           result.loss, result.gradient_norm);
  const double scale = clip_norm_ > 0 && result.gradient_norm > clip_norm_ ? clip_norm_ / (result.gradient_norm + 1e-6) : 1.0;
  optimizer_.update(step + 1, result.learning_rate, scale);
  model_.publish();
  return result;
}

}  // namespace rz::optim
