// ShardedModel: a single-device model made distributed from outside. It lays the parameters out in flat buffers, observes the
// model's units (gathering and releasing weights where they are sharded), is the sink of all gradients (reducing them in a
// fixed order while backward goes on), and hands out what this rank updates.
//
// A step:   begin_step(); for each micro-batch { begin_micro_batch(i); loss = model(...); backward(loss); }
//           reduce_scalars(...); for each unit { update; publish(unit); }.
// * The order of collectives is the same on every rank: forward order for gathers and publications, reverse registration for
//   reductions (D5). What is needed next goes first: a unit's reduction is issued after the gather of the weights that backward
//   needs next. The order is that of the calls, never of readiness on some rank.
// * Communication runs beside compute: reductions beside the rest of backward, gathers `prefetch` units ahead of use,
//   publications beside the next forward, which waits for each layer's weights where it comes to them.
// * For a given bucket layout the results are the same bits under every policy (D4).
// * When memory for transient buffers is taken and given back depends on the order of calls only, never on timing.
// One thread per rank.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "optim/shard/sharded_unit.h"

namespace rz::optim {

// Troubles planted on purpose, to see whether a report finds them. They change no bit of the results.
struct Experiment {
  double slow_factor = 1;   // this rank's forwards and backwards take so many times as long
  std::string late_bucket;  // its reduction, and those after it, wait for the end of backward; empty = none
};

struct ShardingOptions {
  ShardingPolicy policy;
  Precision precision;
  int64_t bucket_bytes = 0;  // 0: a bucket per unit of the model
  Accumulation accumulation;
  comm::Order order = comm::Order::ring;
  int64_t exact_micro_batches = 0;  // above 0: order-independent sums of so many micro-batches, over all ranks, in a step
  int64_t group_size = 0;           // shards lie within groups of so many neighbours, groups hold replicas; 0: one group
  bool overlap = true;              // false: every collective is waited for where it is issued; the same bits
  int prefetch = 1;                 // units of the model whose weights are gathered ahead of use, when parameters are sharded
  int64_t prefetch_bytes = 0;       // gathered weights held at once, the outermost unit's apart, that no prefetch may exceed; 0: any
  int units_in_reduction = 2;       // so many times the largest unit's (or bucket's) gradients may wait for their reduction
  uint64_t seed = 0;                // of the initial weights
  Experiment experiment = {};
};

class ShardedModel final : public nn::UnitObserver, public autograd::GradientSink {
 public:
  // Takes over the memory of `model`'s parameters, gives them the type precision.weights, and writes their initial values. Both
  // must outlive it. COLLECTIVE.
  ShardedModel(nn::Module& model, comm::Communicator& comm, const ShardingOptions& options);
  ~ShardedModel() override;

  nn::Module& model() { return model_; }
  comm::Communicator& communicator() { return comm_; }
  const ShardingOptions& options() const { return options_; }
  std::span<const std::unique_ptr<ShardedUnit>> units() const { return units_; }

  // Gathers the outermost unit, which then stays until end_forward_only() or the end of the step's last backward. COLLECTIVE.
  void begin_step();
  void begin_micro_batch(int64_t index);
  // Backward of a micro-batch's loss, times `scale`, into the flat buffers, reducing on the way; after the last micro-batch all
  // reductions are done when it returns. In exact mode ranks may have different numbers of micro-batches; who has none left takes
  // part in the reductions with an undefined loss, or, where parameters are sharded and others need its shards in a certain order,
  // with a loss that does not count. COLLECTIVE.
  void backward(const Tensor& loss, double scale = 1, bool counts = true);
  // Ends a begin_step() that had no backward (evaluation). COLLECTIVE.
  void end_forward_only();

  // Sum over this rank's shards of the squares of the reduced gradients: summed over the ranks it is the squared global norm.
  // With several groups the first group's ranks alone have any.
  double shard_sum_of_squares() const;
  // Where the reduced gradient of this rank's shards is first not finite: "'blocks.1.mlp.up.weight' of unit blocks.1, element 17
  // is nan"; empty when all of it is finite. For error texts.
  std::string first_non_finite_gradient() const;
  // The squared global norm, the same whatever the buckets: for rank-ordered sums, of whose results no bucket may change a bit.
  // NaN where a gradient is not finite. COLLECTIVE.
  double ordered_sum_of_squares();
  // Null unless sums are exact.
  GradientGrids* exact() { return exact_.get(); }
  // In exact mode, after grids agreed: the squared global norm. Sums `more` over the ranks on the way. COLLECTIVE.
  double exact_sum_of_squares(std::span<Int128> more);
  // values[i] = sum over the ranks, in the order of the reductions. COLLECTIVE.
  void reduce_scalars(std::span<double> values);
  // What this rank sends while one lives is counted as scalars. No gather, reduction or publication may be on its way.
  class ScalarScope {
   public:
    explicit ScalarScope(ShardedModel& model) : model_(model), before_(model.payload_bytes_sent()) {}
    ~ScalarScope() {
      model_.scalar_bytes_sent_ += model_.payload_bytes_sent() - before_;
      model_.exchanged_ = model_.comm_.wire_stats();
    }
    ScalarScope(const ScalarScope&) = delete;
    ScalarScope& operator=(const ScalarScope&) = delete;

   private:
    ShardedModel& model_;
    uint64_t before_;
  };
  uint64_t scalar_bytes_sent() const { return scalar_bytes_sent_; }
  // What this rank had sent and received when the last step's gradients and scalars were exchanged (before a step: so far).
  // Nothing is on its way at that moment: the counts are those of whole collectives.
  comm::WireStats exchanged() const { return exchanged_ ? *exchanged_ : comm_.wire_stats(); }
  // After `unit` was updated: every rank gets every weight it keeps, by the time it needs it. COLLECTIVE.
  void publish(ShardedUnit& unit);
  // Waits for publications on their way. COLLECTIVE.
  void settle();

  // Calls f(parameter) for every parameter, bucket by bucket, while its full value can be read. COLLECTIVE.
  void visit_weights(const std::function<void(const nn::Parameter&)>& f);
  // A hash of all weights, in their own type (the 16-bit ones of mixed precision, not the master), in name order: depends on
  // neither ranks nor policy. COLLECTIVE.
  uint64_t weights_digest();
  // Throws rz::Error on every rank, naming the odd ones, unless all ranks hold the same weights. COLLECTIVE.
  void check_replicas();

  int64_t payload_elements() const;
  int64_t padded_elements() const;
  // Of all weights, in their own type, with padding.
  int64_t payload_bytes() const { return padded_elements() * static_cast<int64_t>(size_bytes(options_.precision.weights)); }

  // nn::UnitObserver
  Tensor run(nn::Module& unit, std::vector<Tensor> inputs, const nn::UnitForward& forward) override;
  void uses(const nn::Module& layer) override;
  // autograd::GradientSink
  autograd::GradientTarget target(autograd::AutogradMeta& leaf) override;
  void ready(autograd::AutogradMeta& leaf) override;

 private:
  struct Place {
    size_t unit = 0;   // of units_
    size_t entry = 0;  // of its layout
  };
  // The buckets of units_ that hold a model unit's parameters, those that no later unit uses, and those that must be there when its forward
  // begins: sharded ones, and those with parameters of modules that do not announce their uses.
  struct UnitSpan {
    std::string name;
    int64_t index = 0;  // in the model's order
    std::vector<size_t> buckets;
    std::vector<size_t> last_used_here;
    std::vector<size_t> needed_first;
  };

  // Stretches compute: what lies between begin() and end() takes `factor` times as long.
  class Slowdown {
   public:
    explicit Slowdown(double factor) : factor_(factor) {}
    void begin();
    void end();

   private:
    double factor_;
    int64_t since_ns_ = 0;  // 0 = not begun
  };

  uint64_t payload_bytes_sent() const;
  void map_units();
  void gather_for(const UnitSpan& span, int direction);
  // Begins to gather the next units' buckets after the unit number `from` in a direction of travel, 1 = forward, -1 = backward.
  void prefetch(int64_t from, int direction);
  void launch_ready_reductions(bool all);
  void finish_oldest_reduction();
  bool last_micro_batch() const { return micro_batch_ + 1 == options_.accumulation.micro_batches; }
  bool reduces_now() const { return options_.accumulation.reduce_every || last_micro_batch(); }

  nn::Module& model_;
  comm::Communicator& comm_;
  ShardGroups groups_;
  ShardingOptions options_;
  std::unique_ptr<GradientGrids> exact_;
  std::vector<std::unique_ptr<ShardedUnit>> units_;
  std::vector<Place> places_;  // by leaf index
  std::unordered_map<const nn::Module*, UnitSpan> spans_;
  std::unordered_map<const nn::Module*, std::vector<size_t>> layer_buckets_;  // of modules that announce their uses
  const UnitSpan* in_forward_ = nullptr;                                      // the unit whose forward runs; not where it is computed again
  std::vector<const UnitSpan*> order_;                                        // of forward
  int64_t backward_at_ = 0;  // the unit that backward came to last, while it runs; else as many as there are
  int64_t reduction_window_bytes_ = 0;                                        // of transient gradients that wait for their reduction
  int64_t reducing_bytes_ = 0;
  std::vector<char> gather_follows_;  // by bucket: when it is ready, backward gathers the next unit's weights
  std::vector<size_t> reduce_order_;
  size_t reduce_cursor_ = 0;    // reductions launched in this backward
  size_t finished_cursor_ = 0;  // of those, waited for
  int64_t micro_batch_ = 0;
  uint64_t scalar_bytes_sent_ = 0;
  std::optional<comm::WireStats> exchanged_;
  bool counts_ = true;  // the micro-batch in backward
  Slowdown slowdown_;
};

}  // namespace rz::optim
