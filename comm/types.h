// The words of the collectives: kinds, reductions, orders of summation, and where a chunk lies.
//
//   chunk     the piece of a buffer that one rank owns: of `count` elements over N ranks, chunk r is
//             [min(r*c, count), min((r+1)*c, count)) with c = ceil(count / N). Shard boundaries are chunk boundaries.
//   segment   a slice of a chunk, the unit of pipelining. Results never depend on its size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace rz::comm {

enum class CollectiveKind : uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, barrier, probe };
inline constexpr int kCollectiveKinds = 6;

// mean: the sum, divided by N once, on the chunk's owner; floating-point types only. NaN propagates through max and min.
// Integer sums wrap.
enum class ReduceOp : uint8_t { sum, mean, max, min };

// The order in which an element's N addends are added. Neither depends on timing or segment size.
//   ring      round the ring, from the rank after the chunk's owner to the owner: depends on N and on chunk boundaries.
//             16-bit floats are added in float32 and rounded at every hop.
//   ordered   rank 0, 1, ..., N-1 for every element: depends on N alone. 16-bit floats are rounded once, at the end.
enum class Order : uint8_t { ring, ordered };

const char* name(CollectiveKind kind);  // "all_reduce", ...
const char* name(ReduceOp op);          // "sum", ...
const char* name(Order order);          // "ring", "ordered"

// The inverses of name(); ConfigError listing the choices for anything else.
CollectiveKind parse_collective_kind(std::string_view text);
ReduceOp parse_reduce_op(std::string_view text);
Order parse_order(std::string_view text);

// A chunk: elements [begin, end) of a buffer.
struct Chunk {
  size_t begin = 0;
  size_t end = 0;
  size_t length() const { return end - begin; }
  bool operator==(const Chunk&) const = default;
};

// Chunk `rank` of `count` elements over `size` ranks; empty where there are more ranks than elements.
constexpr Chunk chunk_of(size_t count, int rank, int size) {
  const size_t c = count / static_cast<size_t>(size) + (count % static_cast<size_t>(size) != 0);
  const size_t r = static_cast<size_t>(rank);
  return {std::min(r * c, count), std::min((r + 1) * c, count)};
}

}  // namespace rz::comm
