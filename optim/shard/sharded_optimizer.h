// The optimizer of a ShardedModel: an update rule with its state for the part of each unit that this rank updates, one fused
// pass per unit, and optionally an exponential moving average of the weights (Polyak averaging) kept the same way.
// State starts at zero, the average at the initial weights; all of it is allocated in the constructor.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "optim/shard/sharded_model.h"

namespace rz::optim {

// Part of a named tensor of the training state in this rank's memory, float32.
struct StateSlice {
  std::string name;   // "model.<parameter>", "optimizer.<state>.<parameter>", "average.<parameter>"
  Shape full_shape;   // of the parameter
  int64_t begin = 0;  // elements of the flattened parameter
  int64_t end = 0;
  float* data = nullptr;
};

class ShardedOptimizer {
 public:
  // `model` must outlive it. ema_decay 0: no average.
  ShardedOptimizer(ShardedModel& model, std::unique_ptr<Optimizer> rule, bool decay_all, double ema_decay);

  // Updates weights, state and average from the reduced gradients. `step` counts from 1. Publish afterwards.
  void update(int64_t step, double learning_rate, double gradient_scale);

  bool has_average() const { return ema_decay_ > 0; }
  // Exchanges the weights with their average (twice = back). COLLECTIVE: it publishes.
  void swap_average();

  // The shards that this rank contributes to a checkpoint: over all ranks every element once.
  std::vector<StateSlice> slices_to_save() const;
  // Everything that this rank keeps and a checkpoint must fill.
  std::vector<StateSlice> slices_to_load() const;

 private:
  struct UnitState {
    ShardedUnit* unit = nullptr;
    std::vector<Tensor> state;  // over unit->update_range()
    Tensor average;             // the same, when there is one
    struct Run {                // a stretch of the update range with one decay setting
      Range range;
      bool decay = true;
    };
    std::vector<Run> runs;
  };

  std::vector<StateSlice> slices(bool for_saving) const;

  ShardedModel& model_;
  std::unique_ptr<Optimizer> rule_;
  double ema_decay_;
  std::vector<UnitState> units_;
};

}  // namespace rz::optim
