// Closed forms of what one rank puts on the wire and takes off it in one collective: exactly what the algorithms of
// comm/ring.h make a transport count, without running them. Pure functions.
#pragma once

#include "comm/types.h"
#include "comm/wire_stats.h"
#include "runtime/core/dtype.h"

namespace rz::comm {

struct TrafficQuestion {
  CollectiveKind kind = CollectiveKind::barrier;
  size_t count = 0;  // elements of the full buffer
  DType dtype = DType::f32;
  Order order = Order::ring;
  int rank = 0;
  int size = 1;
  int root = 0;  // broadcast only
  size_t segment_bytes = 0;
  size_t scratch_bytes = 0;
};

// Payload alone; beside it, of more than one rank, each sends and receives one fingerprint for every collective.
WireCount traffic_of(const TrafficQuestion& question);

}  // namespace rz::comm
