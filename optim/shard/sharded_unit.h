// One bucket of parameters with its flat buffers on this rank: what is kept, gathered, reduced and updated.
//
// The policy is read once, in the constructor, and becomes data: which storages persist, which views an update touches.
// 1. weights: sharded -> gathering -> gathered -> sharded. Without parameter sharding they stay `gathered`, but for the time of a
//    publication, which is a gather in place: whoever needs the weights next waits for it.
// 2. gradients: empty -> accumulating -> reducing -> empty; a transient full buffer exists from the first contribution to the
//    end of its reduction. 16-bit gradients that are reduced in float32 pass through a transient float32 buffer: it exists from
//    the start to the end of the reduction, and a transient 16-bit buffer goes as soon as it is converted.
// 3. Padding is zero in every buffer at all times.
// An illegal transition is an error naming the unit. One thread per rank; communication runs on the rank's progress thread.
#pragma once

#include <string>
#include <vector>

#include "optim/shard/exact_gradients.h"
#include "optim/shard/flat_layout.h"
#include "optim/shard/policy.h"
#include "optim/shard/precision.h"
#include "optim/shard/shard_groups.h"
#include "runtime/autograd/gradient_sink.h"

namespace rz::optim {

// How gradients of several micro-batches come together.
struct Accumulation {
  int64_t micro_batches = 1;
  bool reduce_every = false;  // reduce each micro-batch and add the results; false: add locally, reduce the last only
};

class ShardedUnit {
 public:
  // The parameters of `plan` have the type precision.weights. `exact`: gradients are summed on its grids, in any order; null: as
  // floating-point numbers in `order`. `groups` and `exact` must outlive it.
  ShardedUnit(BucketPlan plan, const ShardingPolicy& policy, const Precision& precision, const Accumulation& accumulation, comm::Order order,
              ShardGroups& groups, GradientGrids* exact = nullptr);
  // Waits for what is still on the wire: its buffers must not go before that.
  ~ShardedUnit();

  const std::string& name() const { return plan_.name; }
  const FlatLayout& layout() const { return layout_; }
  bool outermost() const { return plan_.outermost; }
  bool trainable() const { return plan_.trainable; }

  // Writes the initial values of whatever this rank keeps, rounded to the weights' type.
  void initialize(uint64_t seed);
  // Writes the initial values of `range` of the flat buffer to `flat` (of that length, any floating-point type), not the padding.
  void write_initial_values(uint64_t seed, Range range, const Tensor& flat) const;

  // --- weights ---
  bool gathered() const { return weights_state_ == WeightsState::gathered; }
  // Neither there nor on their way.
  bool sharded() const { return weights_state_ == WeightsState::sharded; }
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
  // Ends a micro-batch in exact mode: its gradients join the sums (or, without `counts`, are dropped) and their buffer is freed.
  // No effect in other modes or when that was done.
  void fold(bool counts);
  // Zeros for entries that got no contribution, then sums over the ranks: reduce-scatter (in the group, with an all-reduce across
  // groups), or all-reduce where the whole is kept. COLLECTIVE.
  void start_reduce();
  // Waits for it, adds the result to earlier micro-batches' where asked, frees a transient buffer.
  void finish_reduce();
  bool reducing() const { return gradients_state_ == GradientsState::reducing; }
  // A reduction holds memory of its own until it is finished.
  bool reduction_is_transient() const { return policy_.gradients || widens_; }
  // Forgets readiness; `keep` keeps what was accumulated (the next micro-batch adds to it).
  void end_backward(bool keep);

  // --- update ---
  // The part that this rank updates, as a range of the flat buffer, and flat views of it (of type precision.weights).
  Range update_range() const { return update_range_; }
  Tensor weight_view() const { return weight_view_; }
  Tensor gradient_view() const { return gradient_view_; }
  // This rank's shard of the reduced gradient, in every policy: what norms are summed over.
  Tensor gradient_shard() const;
  // Begins to send updated shards to everybody where full weights persist; the weights are then `gathering`. COLLECTIVE where it
  // communicates.
  void start_publish();
  // Waits for a publication on its way: before own weights change again, or anything reads them without gather().
  void finish_publish();

  // --- state by name ---
  // Calls f(entry, elements of the parameter, where they begin in the range) for each part of a parameter in `range`.
  template <class F>
  void for_each_part(Range range, F&& f) const {
    for (const FlatEntry& entry : layout_.entries()) {
      const Range part = intersect(entry.range(), range);
      if (part.length() == 0 && entry.parameter->numel() > 0) continue;
      f(entry, Range{part.begin - entry.offset, part.end - entry.offset}, part.begin - range.begin);
    }
  }
  // Whether this rank's shard is the one that counts: with several groups every shard exists once in each.
  bool speaks_for_shard() const { return groups_.first(); }
  // What this rank keeps of the weights, flat: its shard, or everything.
  Range kept_range() const { return policy_.parameters ? shard_ : layout_.whole(); }
  Tensor kept_weights() const;
  Range shard() const { return shard_; }

 private:
  enum class WeightsState : uint8_t { sharded, gathering, gathered };
  enum class GradientsState : uint8_t { empty, accumulating, reducing };

  void materialize_gradients();
  void zero_gradients(Range range);
  // The gradients in the reduction's type, in a buffer of their own.
  std::byte* widen_gradients();
  // The bytes of an element of a buffer of weights or gradients.
  std::byte* at(const std::shared_ptr<Storage>& storage, int64_t element = 0) const;
  size_t padded() const { return static_cast<size_t>(layout_.padded_elements()); }

  BucketPlan plan_;
  FlatLayout layout_;
  ShardingPolicy policy_;
  Precision precision_;
  bool widens_;  // gradients are converted for their reduction; on one rank there is nothing to round
  Accumulation accumulation_;
  comm::Order order_;
  ShardGroups& groups_;
  comm::Communicator& comm_;  // of the group that shares shards
  Range shard_;
  Range update_range_;

  std::shared_ptr<Storage> weights_;        // full; parameters are views of it
  std::shared_ptr<Storage> weights_shard_;  // own shard, when parameters are sharded
  std::shared_ptr<Storage> gradients_;      // full; persistent or transient
  Tensor widened_;                          // full, in the reduction's type, while gradients of another type are reduced
  Tensor accumulated_;                      // reduced gradients of the update range, where they are kept apart from the full buffer
  std::unique_ptr<ExactGradients> exact_;   // in exact mode; gradients_ is then transient, of one micro-batch
  Tensor weight_view_;
  Tensor gradient_view_;

  WeightsState weights_state_ = WeightsState::sharded;
  GradientsState gradients_state_ = GradientsState::empty;
  std::vector<char> contributed_;
  size_t ready_ = 0;
  bool have_reduced_ = false;  // accumulated_ holds earlier micro-batches of this step
  comm::Work gather_work_;
  comm::Work reduce_work_;
};

}  // namespace rz::optim
