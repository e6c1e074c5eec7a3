// One optimizer step over sharded state: micro-batches, the global loss and gradient norm, loss scaling, clipping, update,
// publishing.
// Knows no model and no data: the caller computes each micro-batch's loss.
#pragma once

#include <cstdint>
#include <functional>

#include "optim/loss_scaler.h"
#include "optim/schedule.h"
#include "optim/shard/sharded_optimizer.h"

namespace rz::optim {

// A micro-batch on this rank. `loss` is scaled so that the sum over micro-batches and ranks is the loss to minimize.
struct MicroLoss {
  Tensor loss{};       // scalar in the graph
  double sum = 0;      // unscaled, for reporting: sum over this rank's items
  int64_t count = 0;   // items in the sum
  bool counts = true;  // false: computed only to take part, in exact mode (ShardedModel::backward)
};

struct StepResult {
  double loss = 0;           // mean over all items of all ranks
  double gradient_norm = 0;  // global L2 norm of the reduced gradient, unscaled, before clipping; not finite when skipped
  double learning_rate = 0;
  int64_t items = 0;         // over all ranks
  double loss_scale = 1;     // that this step was made with
  bool skipped = false;      // the gradient overflowed: weights and optimizer state are those of the step before
  int repeats = 0;           // exact mode: times the step was computed again because gradients had grown beyond their grids
};

class Trainer {
 public:
  // clip_norm 0: never clips. All must outlive it.
  Trainer(ShardedModel& model, ShardedOptimizer& optimizer, const Schedule& schedule, double clip_norm, const LossScaling& scaling = {});

  // Step `step`, counted from 0. A gradient that is not finite skips the update where loss scaling allows it; the decision is made
  // from the reduced norm (in exact mode: from the magnitudes that all ranks agree on), which is the same on every rank. Otherwise,
  // and for a loss that is not finite, rz::Error on every rank, naming the step and, on a rank that holds it, the parameter: the
  // weights are then still those of the step before. In exact mode `forward` may be called for all micro-batches a second time, and
  // must give the same again. COLLECTIVE.
  StepResult step(int64_t step, const std::function<MicroLoss(int64_t micro_batch)>& forward);

  // Part of the training state: saved and restored with the weights.
  const LossScaler& loss_scaler() const { return scaler_; }
  LossScaler& loss_scaler() { return scaler_; }

 private:
  [[noreturn]] void fail(int64_t step, const StepResult& result) const;
  struct Totals {
    double squared_norm = 0;
    double loss_sum = 0;
    double count = 0;
  };
  // The micro-batches and the sums over them and over the ranks, in the mode of the model.
  Totals accumulate(const std::function<MicroLoss(int64_t)>& forward);
  Totals accumulate_exactly(int64_t step, const std::function<MicroLoss(int64_t)>& forward, int& repeats);
  MicroLoss compute(int64_t micro_batch, const std::function<MicroLoss(int64_t)>& forward);

  ShardedModel& model_;
  ShardedOptimizer& optimizer_;
  Schedule schedule_;
  double clip_norm_;
  LossScaler scaler_;
};

}  // namespace rz::optim
