#include "optim/trainer.h"

#include <array>
#include <cmath>
#include <limits>

#include "runtime/core/trace.h"

namespace rz::optim {

Trainer::Trainer(ShardedModel& model, ShardedOptimizer& optimizer, const Schedule& schedule, double clip_norm, const LossScaling& scaling)
    : model_(model), optimizer_(optimizer), schedule_(schedule), clip_norm_(clip_norm), scaler_(scaling) {
  RZ_CONFIG_CHECK(clip_norm >= 0 && std::isfinite(clip_norm), "the gradient norm to clip at must be 0 (never) or positive, not {}",
                  clip_norm);
}

MicroLoss Trainer::compute(int64_t micro_batch, const std::function<MicroLoss(int64_t)>& forward) {
  model_.begin_micro_batch(micro_batch);
  const MicroLoss micro = [&] {
    const trace::Scope activity(trace::Activity::forward);
    return forward(micro_batch);
  }();
  model_.backward(micro.loss, scaler_.scale(), micro.counts);
  return micro;
}

Trainer::Totals Trainer::accumulate(const std::function<MicroLoss(int64_t)>& forward) {
  double loss_sum = 0;
  double count = 0;
  model_.begin_step();
  for (int64_t m = 0; m < model_.options().accumulation.micro_batches; ++m) {
    const MicroLoss micro = compute(m, forward);
    loss_sum += micro.sum;
    count += static_cast<double>(micro.count);
  }
  const ShardedModel::ScalarScope scalars(model_);
  // Each scalar's sum runs in the same order on every rank: all ranks decide alike.
  const bool ordered = model_.options().order == comm::Order::ordered;
  std::array<double, 3> global = {ordered ? 0.0 : model_.shard_sum_of_squares(), loss_sum, count};
  model_.reduce_scalars(global);
  return {ordered ? model_.ordered_sum_of_squares() : global[0], global[1], global[2]};
}

Trainer::Totals Trainer::accumulate_exactly(int64_t step, const std::function<MicroLoss(int64_t)>& forward, int& repeats) {
  for (repeats = 0;; ++repeats) {
    FixedSum loss;
    int64_t count = 0;
    bool loss_is_bad = false;
    model_.begin_step();
    for (int64_t m = 0; m < model_.options().accumulation.micro_batches; ++m) {
      const MicroLoss micro = compute(m, forward);
      if (!micro.counts) continue;
      loss_is_bad |= !loss.add(micro.sum);
      count += micro.count;
    }
    const ShardedModel::ScalarScope scalars(model_);
    const auto verdict = model_.exact()->agree(model_.communicator(), step, loss_is_bad, scaler_.can_skip());
    if (verdict == GradientGrids::Verdict::repeat) continue;
    std::array<Int128, 2> sums = {loss.value, count};
    double squared_norm = std::numeric_limits<double>::infinity();
    if (verdict == GradientGrids::Verdict::exact) {
      squared_norm = model_.exact_sum_of_squares(sums);
      model_.exact()->end_step();
    } else {
      all_reduce_exactly(model_.communicator(), sums, "scalars");
    }
    loss.value = sums[0];
    return {squared_norm, loss.to_double(), static_cast<double>(sums[1])};
  }
}

StepResult Trainer::step(int64_t step, const std::function<MicroLoss(int64_t)>& forward) {
  // What is no other phase's is forward's: between its end and backward's begin the activations are held.
  PhaseScope phase(Phase::forward);
  StepResult result;
  const Totals totals = model_.exact() != nullptr ? accumulate_exactly(step, forward, result.repeats) : accumulate(forward);
  result.loss_scale = scaler_.scale();
  result.gradient_norm = std::sqrt(totals.squared_norm) / result.loss_scale;
  // In a dry run nobody else is there to count samples for a rank that has none.
  result.loss = dry_run() && totals.count == 0 ? 0 : totals.loss_sum / totals.count;
  result.items = static_cast<int64_t>(totals.count);
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
