// The algorithms: ring reduce-scatter, all-gather, all-reduce, broadcast, barrier, the rank-ordered reduce-scatter, and short all-reduces.
// Blocking functions over a Wire, run on the progress thread; they neither check arguments nor know of errors, which come
// out of the Wire as exceptions. `count` is the number of elements of the full buffer everywhere.
//
// Each rank sends, with N ranks:
//   reduce_scatter   every chunk but its own                      (N-1)/N of the buffer when N divides it
//   all_gather       every chunk but its right neighbour's        the same
//   all_reduce       both of the above                            2(N-1)/N, or N-1 of a short one
// whatever the order of summation; the same on the receiving side.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "comm/types.h"
#include "comm/wire.h"
#include "runtime/core/dtype.h"

namespace rz::comm {

// Memory lent to an algorithm, and the size of its segments (the same on all ranks). The ring needs kRingWindow segments.
struct Scratch {
  std::byte* data = nullptr;
  size_t bytes = 0;
  size_t segment_bytes = 0;
};
inline constexpr size_t kRingWindow = 4;  // receives posted ahead

// Elements of a segment.
inline size_t segment_elements(size_t segment_bytes, size_t element_bytes) { return std::max<size_t>(1, segment_bytes / element_bytes); }
// Elements of a segment of sums in rank order, where one of every peer lies in the scratch at a time.
inline size_t ordered_segment_elements(size_t segment_bytes, size_t scratch_bytes, size_t element_bytes, size_t peers) {
  return segment_elements(std::min(segment_bytes, scratch_bytes / peers), element_bytes);
}
// The shortest segments with which a job runs: the scratch has room for the longest element of every peer.
inline size_t least_segment_bytes(int ranks) {
  constexpr size_t kLongestElement = 8;
  return std::max<size_t>(64, (static_cast<size_t>(ranks) * kLongestElement + kRingWindow - 1) / kRingWindow);
}

// An all-reduce so short that turns count and bytes do not, such as a loss or the norm of a gradient, is not passed round the ring:
// everybody gathers in its scratch what all contribute and adds it, in the same order. ceil(log2 N) turns instead of 2(N-1).
inline constexpr size_t kLongestGathered = 256;  // bytes of a rank
inline bool is_gathered(uint64_t bytes, int ranks, size_t scratch_bytes) {
  return bytes > 0 && bytes <= kLongestGathered && bytes * static_cast<uint64_t>(ranks) <= scratch_bytes;
}
inline int gather_turns(int ranks) { return std::bit_width(static_cast<unsigned>(ranks - 1)); }

struct Reduction {
  DType dtype = DType::f32;
  ReduceOp op = ReduceOp::sum;
  Order order = Order::ring;
};

// `full` is destroyed; `own` (this rank's chunk of the result) may be its place in `full`.
void reduce_scatter(Wire& wire, const Scratch& scratch, std::byte* full, std::byte* own, size_t count, const Reduction& reduction);
// `own` may be its place in `full`.
void all_gather(Wire& wire, const Scratch& scratch, const std::byte* own, std::byte* full, size_t count, DType dtype);
void all_reduce(Wire& wire, const Scratch& scratch, std::byte* data, size_t count, const Reduction& reduction);
void broadcast(Wire& wire, const Scratch& scratch, std::byte* data, size_t count, DType dtype, int root);
void barrier(Wire& wire);

}  // namespace rz::comm
