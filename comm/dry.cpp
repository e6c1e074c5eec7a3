#include "comm/dry.h"

#include "comm/progress.h"
#include "comm/traffic.h"
#include "comm/work_state.h"

namespace rz::comm {

Dry::Dry(int rank, int size, size_t segment_bytes)
    : rank_(rank),
      size_(size),
      segment_bytes_(segment_bytes == 0 ? ProgressOptions{}.segment_bytes : std::max(segment_bytes, least_segment_bytes(size))),
      scratch_(Storage::make(collective_memory_bytes(segment_bytes_, size), Category::communication, "collective scratch")),
      pulse_(std::make_shared<Pulse>()) {}

Work Dry::issue(const Fingerprint& f, const Group& group) {
  const TrafficQuestion question{f.kind,       f.count, f.dtype,        f.order,      group.rank,
                                 group.size(), f.root,  segment_bytes_, kRingWindow * segment_bytes_};
  const WireCount moved = traffic_of(question);
  stats_.payload[static_cast<size_t>(f.kind)] += moved;
  if (group.size() > 1) stats_.header += {sizeof(Fingerprint), sizeof(Fingerprint), 1, 1};
  auto state = std::make_shared<Work::State>();
  state->pulse = pulse_;
  state->print = f;
  state->note(group);
  state->start();
  state->finish({.sent_bytes = moved.sent_bytes}, {});
  return Work(std::move(state));
}

Communicator make_dry_communicator(int rank, int size, size_t segment_bytes) {
  RZ_CHECK(size >= 1 && rank >= 0 && rank < size, "rank {} of {}", rank, size);
  auto group = std::make_shared<Group>();
  group->rank = rank;
  group->members.resize(static_cast<size_t>(size));
  for (int i = 0; i < size; ++i) group->members[static_cast<size_t>(i)] = i;
  return Communicator(std::make_shared<Dry>(rank, size, segment_bytes), std::move(group));
}

}  // namespace rz::comm
