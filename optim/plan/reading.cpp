#include "optim/plan/reading.h"

#include "runtime/core/rank_context.h"

namespace rz::optim {

MemoryReading read_memory(const MemoryTracker& tracker) {
  MemoryReading reading;
  reading.peak = tracker.peak();
  for (size_t p = 0; p < kPhases; ++p) reading.by_phase[p] = tracker.peak(static_cast<Phase>(p));
  reading.current = tracker.current();
  reading.unaccounted_bytes = tracker.unaccounted_bytes();
  return reading;
}

std::vector<UnitReading> read_units(const ShardedModel& model) {
  std::vector<UnitReading> units;
  for (const auto& unit : model.units()) {
    const FlatLayout& layout = unit->layout();
    units.push_back({unit->name(), unit->outermost(), unit->trainable(), static_cast<int64_t>(layout.entries().size()), layout.payload_elements(),
                     layout.padded_elements(), unit->shard()});
  }
  return units;
}

uint64_t StepTraffic::sent_bytes() const {
  uint64_t sum = 0;
  for (const auto& count : by_kind) sum += count.sent_bytes;
  return sum - scalar_bytes;
}

void StepMeter::begin_step() { RankContext::current()->memory().begin_window(); }

void StepMeter::end_step() {
  const comm::WireStats now = model_.exchanged();
  for (size_t k = 0; k < last_.by_kind.size(); ++k) last_.by_kind[k] = now.payload[k] - before_.payload[k];
  last_.scalar_bytes = model_.scalar_bytes_sent() - scalars_before_;
  before_ = now;
  scalars_before_ = model_.scalar_bytes_sent();
  ++steps_;
  sent_bytes_ += last_.sent_bytes();
  scalar_bytes_ += last_.scalar_bytes;
  const MemoryPeak peak = RankContext::current()->memory().window_peak();
  if (peak.by_category != memory_.by_category) memory_constant_since_ = steps_;
  memory_ = peak;
}

void StepMeter::finish() {
  model_.settle();
  const comm::WireStats now = model_.communicator().wire_stats();
  for (size_t k = 0; k < last_.by_kind.size(); ++k) {
    const comm::WireCount tail = now.payload[k] - before_.payload[k];
    sent_bytes_ += tail.sent_bytes;
    if (steps_ == 1) last_.by_kind[k] += tail;  // there was no step before it
  }
  before_ = now;
}

StepMeter::Pause::Pause(StepMeter& meter) : meter_(meter) {
  meter_.model_.settle();
  start_ = meter_.model_.communicator().wire_stats();
}

StepMeter::Pause::~Pause() {
  const comm::WireStats now = meter_.model_.communicator().wire_stats();
  for (size_t k = 0; k < now.payload.size(); ++k) meter_.before_.payload[k] += now.payload[k] - start_.payload[k];
}

}  // namespace rz::optim
