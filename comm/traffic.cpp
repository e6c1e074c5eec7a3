#include "comm/traffic.h"

#include "comm/ring.h"

namespace rz::comm {

namespace {

struct Pieces {
  uint64_t elements = 0;
  uint64_t segments = 0;
};

uint64_t segments_of(uint64_t elements, uint64_t segment) { return (elements + segment - 1) / segment; }

// Of one chunk, or of all of them: full chunks, then one that is cut short, then empty ones.
Pieces one_chunk(const TrafficQuestion& q, int rank, uint64_t segment) {
  const uint64_t length = chunk_of(q.count, (rank + q.size) % q.size, q.size).length();
  return {length, segments_of(length, segment)};
}
Pieces all_chunks(const TrafficQuestion& q, uint64_t segment) {
  const uint64_t full = chunk_of(q.count, 0, q.size).length();
  if (full == 0) return {};
  return {q.count, q.count / full * segments_of(full, segment) + segments_of(q.count % full, segment)};
}

void add_all_but(const TrafficQuestion& q, uint64_t segment, int but, uint64_t& bytes, uint64_t& messages) {
  const Pieces all = all_chunks(q, segment);
  const Pieces one = one_chunk(q, but, segment);
  bytes += (all.elements - one.elements) * size_bytes(q.dtype);
  messages += all.segments - one.segments;
}

void add_reduce_scatter(const TrafficQuestion& q, WireCount& count) {
  const uint64_t element = size_bytes(q.dtype);
  if (q.order == Order::ring) {
    const uint64_t segment = segment_elements(q.segment_bytes, element);
    add_all_but(q, segment, q.rank, count.sent_bytes, count.sent_messages);
    add_all_but(q, segment, q.rank - 1, count.received_bytes, count.received_messages);
    return;
  }
  // Each chunk straight to its owner: this rank takes its own from all others.
  const auto peers = static_cast<uint64_t>(q.size - 1);
  const uint64_t segment = ordered_segment_elements(q.segment_bytes, q.scratch_bytes, element, peers);
  add_all_but(q, segment, q.rank, count.sent_bytes, count.sent_messages);
  const Pieces own = one_chunk(q, q.rank, segment);
  count.received_bytes += peers * own.elements * element;
  count.received_messages += peers * own.segments;
}

void add_all_gather(const TrafficQuestion& q, WireCount& count) {
  const uint64_t segment = segment_elements(q.segment_bytes, size_bytes(q.dtype));
  add_all_but(q, segment, q.rank + 1, count.sent_bytes, count.sent_messages);
  add_all_but(q, segment, q.rank, count.received_bytes, count.received_messages);
}

}  // namespace

WireCount traffic_of(const TrafficQuestion& q) {
  WireCount count;
  if (q.size == 1) return count;
  switch (q.kind) {
    case CollectiveKind::all_reduce:
      if (const uint64_t bytes = q.count * size_bytes(q.dtype); is_gathered(bytes, q.size, q.scratch_bytes)) {
        const auto turns = static_cast<uint64_t>(gather_turns(q.size)), peers = static_cast<uint64_t>(q.size - 1);
        count = {peers * bytes, peers * bytes, turns, turns};
        break;
      }
      add_reduce_scatter(q, count);
      add_all_gather(q, count);
      break;
    case CollectiveKind::reduce_scatter: add_reduce_scatter(q, count); break;
    case CollectiveKind::all_gather: add_all_gather(q, count); break;
    case CollectiveKind::broadcast: {
      const uint64_t bytes = q.count * size_bytes(q.dtype);
      const uint64_t messages = segments_of(bytes, q.segment_bytes);
      if ((q.rank + 1) % q.size != q.root) count.sent_bytes = bytes, count.sent_messages = messages;
      if (q.rank != q.root) count.received_bytes = bytes, count.received_messages = messages;
      break;
    }
    case CollectiveKind::barrier:
      for (int distance = 1; distance < q.size; distance *= 2) ++count.sent_messages, ++count.received_messages;
      break;
    case CollectiveKind::probe: break;  // a measurement, of no step
  }
  return count;
}

}  // namespace rz::comm
