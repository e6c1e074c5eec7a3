// What a rank learns about its clock and its incoming link, in a few messages before the work begins.
#pragma once

#include <cstdint>

#include "comm/ring.h"
#include "comm/wire.h"

namespace rz::comm {

struct ProbeResult {
  // This rank's steady_now_ns() plus the offset is rank 0's, to within the error. Exactly 0 where both read the same clock.
  int64_t clock_offset_ns = 0;
  int64_t clock_error_ns = 0;
  // The link from the left neighbour while all ranks send at once; 0 on one rank.
  int64_t latency_ns = 0;
  double bytes_per_s = 0;
};

// The clock as in NTP (Mills 1991): the quickest of several exchanges with rank 0 bounds the offset by half its time. The link from
// messages that carry the time at which they left.
void probe(Wire& wire, const Scratch& scratch, ProbeResult& result);

}  // namespace rz::comm
