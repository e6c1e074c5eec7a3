// One bucket of parameters with its flat buffers on this rank: what is kept, gathered, reduced and updated.
//
// The policy is read once, in the constructor, and becomes data: which storages persist, which views an update touches.
// 1. weights: sharded -> gathering -> gathered -> sharded; without parameter sharding they are `gathered` for good.
// 2. gradients: empty -> accumulating -> reducing -> empty; a transient full buffer exists from the first contribution to the
//    end of its reduction.
// 3. Padding is zero in every buffer at all times.
// An illegal transition is an error naming the unit. One thread per rank; communication runs on the rank's progress thread.
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"
#include "optim/shard/flat_layout.h"
#include "optim/shard/policy.h"
#include "runtime/autograd/gradient_sink.h"

namespace rz::optim {

// How gradients of several micro-batches come together.
struct Accumulation {
  int64_t micro_batches = 1;
  bool reduce_every = false;  // reduce each micro-batch and add the results; false: add locally, reduce the last only
};

class ShardedUnit {
 public:
  ShardedUnit(BucketPlan plan, const ShardingPolicy& policy, const Accumulation& accumulation, comm::Order order, comm::Communicator& comm);
  // Waits for what is still on the wire: its buffers must not go before that.
  ~ShardedUnit();

  const std::string& name() const { return plan_.name; }
  const FlatLayout& layout() const { return layout_; }
  bool outermost() const { return plan_.outermost; }
  bool trainable() const { return plan_.trainable; }

  // Writes the initial values of whatever this rank keeps.
  void initialize(uint64_t seed);

  // --- weights ---
  bool gathered() const { return weights_state_ == WeightsState::gathered; }
  // Begins to gather the full weights; no effect when they are there or on their way. COLLECTIVE.
  void start_gather();
  // Waits until they are there; starts the gather if nobody has. COLLECTIVE.
  void gather();
  // Gives the full weights back; no effect where they persist.
  void release();

  // --- gradients ---
  // Where the gradient of entry `index` goes (autograd::GradientSink::target).
  autograd::GradientTarget gradient_target(size_t index);
  // Entry `index` has had its last contribution of this backward; true when it was the last of the unit.
  bool entry_ready(size_t index);
  bool all_ready() const { return ready_ == layout_.entries().size(); }
  // Zeros for entries that got no contribution, then sums over the ranks: reduce-scatter, or all-reduce where the whole is
  // kept. COLLECTIVE.
  void start_reduce();
  // Waits for it, adds the result to earlier micro-batches' where asked, frees a transient buffer.
  void finish_reduce();
  bool reducing() const { return gradients_state_ == GradientsState::reducing; }
  // Forgets readiness; `keep` keeps what was accumulated (the next micro-batch adds to it).
  void end_backward(bool keep);

  // --- update ---
  // The part that this rank updates, as a range of the flat buffer, and flat views of it (float32).
  Range update_range() const { return update_range_; }
  Tensor weight_view() const { return weight_view_; }
  Tensor gradient_view() const { return gradient_view_; }
  // This rank's shard of the reduced gradient, in every policy: what norms are summed over.
  Tensor gradient_shard() const;
  // Sends updated shards to everybody where full weights persist. COLLECTIVE where it communicates.
  void start_publish();
  void finish_publish();

  // --- state by name ---
  // Calls f(entry, elements of the parameter, pointer to them in `flat`) for each part of a parameter in `range`; `flat`
  // holds `range` of the flat buffer.
  template <class F>
  void for_each_part(Range range, float* flat, F&& f) const {
    for (const FlatEntry& entry : layout_.entries()) {
      const Range part = intersect(entry.range(), range);
      if (part.length() == 0 && entry.parameter->numel() > 0) continue;
      f(entry, Range{part.begin - entry.offset, part.end - entry.offset}, flat + (part.begin - range.begin));
    }
  }
  // What this rank keeps of the weights: its shard, or everything.
  Range kept_range() const { return policy_.parameters ? shard_ : layout_.whole(); }
  float* kept_weights() const;
  Range shard() const { return shard_; }
  float* shard_weights() const { return kept_weights() + (policy_.parameters ? 0 : shard_.begin); }

 private:
  enum class WeightsState : uint8_t { sharded, gathering, gathered };
  enum class GradientsState : uint8_t { empty, accumulating, reducing };

  void materialize_gradients();
  size_t padded() const { return static_cast<size_t>(layout_.padded_elements()); }

  BucketPlan plan_;
  FlatLayout layout_;
  ShardingPolicy policy_;
  Accumulation accumulation_;
  comm::Order order_;
  comm::Communicator& comm_;
  Range shard_;
  Range update_range_;

  std::shared_ptr<Storage> weights_;        // full; parameters are views of it
  std::shared_ptr<Storage> weights_shard_;  // own shard, when parameters are sharded
  std::shared_ptr<Storage> gradients_;      // full; persistent or transient
  Tensor accumulated_;                      // reduced gradients of the update range, where they are kept apart from the full buffer
  Tensor weight_view_;
  Tensor gradient_view_;

  WeightsState weights_state_ = WeightsState::sharded;
  GradientsState gradients_state_ = GradientsState::empty;
  std::vector<char> contributed_;
  size_t ready_ = 0;
  bool have_reduced_ = false;  // accumulated_ holds earlier micro-batches of this step
  comm::Work gather_work_;
  comm::Work reduce_work_;
  comm::Work publish_work_;
};

}  // namespace rz::optim
