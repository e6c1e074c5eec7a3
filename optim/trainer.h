// One optimizer step over sharded state: micro-batches, the global loss and gradient norm, clipping, update, publishing.
// Knows no model and no data: the caller computes each micro-batch's loss.
#pragma once

#include <cstdint>
#include <functional>

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
  double gradient_norm = 0;  // global L2 norm of the reduced gradient, before clipping
  double learning_rate = 0;
  int64_t items = 0;         // over all ranks
  int repeats = 0;           // exact mode: times the step was computed again because gradients had grown beyond their grids
};

class Trainer {
 public:
  // clip_norm 0: never clips. All must outlive it.
  Trainer(ShardedModel& model, ShardedOptimizer& optimizer, const Schedule& schedule, double clip_norm);

  // Step `step`, counted from 0. Throws rz::Error, on every rank, when the loss or the norm is not finite: the weights are then
  // still those of the step before. In exact mode `forward` may be called for all micro-batches a second time, and must give the
  // same again. COLLECTIVE.
  StepResult step(int64_t step, const std::function<MicroLoss(int64_t micro_batch)>& forward);

 private:
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
};

}  // namespace rz::optim
