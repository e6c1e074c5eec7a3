// The optimizer of a ShardedModel: an update rule with its state for the part of each unit that this rank updates, one fused
// pass per unit, and optionally an exponential moving average of the weights (Polyak averaging) kept the same way.
// State starts at zero, the average at the initial weights; all of it is allocated in the constructor.
//
// In mixed precision it also keeps the master weights: the same part in float32, from the initial values on. Updates, the average
// and checkpoints are of the master; the model's 16-bit weights are always the master rounded to nearest even.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "optim/shard/sharded_model.h"

namespace rz::optim {

// Part of a named tensor of the training state in this rank's memory, float32: a checkpoint does not depend on the precision.
struct StateSlice {
  std::string name;   // "model.<parameter>", "optimizer.<state>.<parameter>", "average.<parameter>"
  Shape full_shape;   // of the parameter
  int64_t begin = 0;  // elements of the flattened parameter
  int64_t end = 0;
  float* data = nullptr;
  // Frozen weights of 16 bit have no master: `data` is part of `staged`, a float32 copy of `original`.
  Tensor staged{};
  Tensor original{};
};

class ShardedOptimizer {
 public:
  // `model` must outlive it, and hold its initial weights. ema_decay 0: no average.
  ShardedOptimizer(ShardedModel& model, std::unique_ptr<Optimizer> rule, bool decay_all, double ema_decay);

  // Updates weights, state and average from the reduced gradients, and publishes each unit as soon as it is updated. `step` counts
  // from 1. COLLECTIVE.
  void update(int64_t step, double learning_rate, double gradient_scale);

  bool has_average() const { return ema_decay_ > 0; }
  // Exchanges the weights with their average (twice = back). COLLECTIVE: it publishes.
  void swap_average();

  // The shards that this rank contributes to a checkpoint: over all ranks every element once.
  std::vector<StateSlice> slices_to_save() const;
  // Everything that this rank keeps and a checkpoint must fill.
  std::vector<StateSlice> slices_to_load() const;
  // After slices_to_load() were filled: derives from them what is not in a checkpoint (the 16-bit weights). COLLECTIVE.
  void finish_load(const std::vector<StateSlice>& slices);

 private:
  struct UnitState {
    ShardedUnit* unit = nullptr;
    std::vector<Tensor> state;  // over unit->update_range()
    Tensor master;              // the same, in mixed precision
    Tensor average;             // the same, when there is one
    struct Run {                // a stretch of the update range with one decay setting
      Range range;
      bool decay = true;
    };
    std::vector<Run> runs;
    // The float32 weights that are updated.
    Tensor weights() const { return master.defined() ? master : unit->weight_view(); }
    // Makes the model's weights follow changed float32 ones.
    void round_weights() const;
  };

  void add_slices(std::vector<StateSlice>& out, const ShardedUnit& unit, const std::string& prefix, Range range, const Tensor& flat) const;
  std::vector<StateSlice> slices(bool for_saving) const;

  ShardedModel& model_;
  std::unique_ptr<Optimizer> rule_;
  double ema_decay_;
  std::vector<UnitState> units_;
};

}  // namespace rz::optim
