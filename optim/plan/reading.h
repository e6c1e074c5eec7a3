// What a ledger, a wire and a sharded model say at one moment, as plain data. Read from a rank that trained it is a measurement;
// read from a dry run (runtime/core/rank_context.h) it is the prediction. One code for both: they can be compared field by field.
#pragma once

#include <string>
#include <vector>

#include "optim/shard/sharded_model.h"
#include "runtime/core/memory.h"

namespace rz::optim {

struct MemoryReading {
  MemoryPeak peak;
  std::array<MemoryPeak, kPhases> by_phase{};
  CategoryBytes current{};  // between steps the persistent states
  int64_t unaccounted_bytes = 0;

  int64_t current_bytes(Category c) const { return current[static_cast<size_t>(c)]; }
  const MemoryPeak& of(Phase p) const { return by_phase[static_cast<size_t>(p)]; }
};
MemoryReading read_memory(const MemoryTracker& tracker);

// One bucket and where this rank's shard of it lies.
struct UnitReading {
  std::string name;
  bool outermost = false;
  bool trainable = true;
  int64_t tensors = 0;
  int64_t payload_elements = 0;
  int64_t padded_elements = 0;
  Range shard;
};
std::vector<UnitReading> read_units(const ShardedModel& model);

// Bytes that one rank sends and receives in a step, of weights and gradients; the step's few scalars apart.
struct StepTraffic {
  std::array<comm::WireCount, comm::kCollectiveKinds> by_kind{};  // scalars included
  uint64_t scalar_bytes = 0;                                      // sent
  uint64_t sent_bytes() const;                                    // without scalars
};

// Adds up what steps send and receive, and keeps the last one's memory. A step's share of the wire runs from the end of one gradient
// exchange to the end of the next, when nothing is on its way: the publication of a step is counted with the step after it.
class StepMeter {
 public:
  explicit StepMeter(ShardedModel& model) : model_(model), before_(model.exchanged()), scalars_before_(model.scalar_bytes_sent()) {}
  // Before each step: its memory is the window of this rank's tracker.
  void begin_step();
  // After each step.
  void end_step();
  // After the last: its publication joins it. COLLECTIVE.
  void finish();

  // What is sent while one lives belongs to no step (evaluation, checks, checkpoints); it must be done by its end. COLLECTIVE.
  class Pause {
   public:
    explicit Pause(StepMeter& meter);
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    StepMeter& meter_;
    comm::WireStats start_;
  };
  int64_t steps() const { return steps_; }
  const StepTraffic& last() const { return last_; }
  // Sent in all steps together, without scalars.
  uint64_t sent_bytes() const { return sent_bytes_; }
  uint64_t scalar_bytes() const { return scalar_bytes_; }
  // Peaks of the last step, and the first of the steps (counted from 1) since which every category's peak has been the same to the byte.
  const MemoryPeak& memory() const { return memory_; }
  int64_t memory_constant_since() const { return memory_constant_since_; }

 private:
  ShardedModel& model_;
  comm::WireStats before_;
  uint64_t scalars_before_;
  StepTraffic last_;
  MemoryPeak memory_;
  int64_t memory_constant_since_ = 0;
  int64_t steps_ = 0;
  uint64_t sent_bytes_ = 0;
  uint64_t scalar_bytes_ = 0;
};

}  // namespace rz::optim
