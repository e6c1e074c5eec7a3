// The caching allocator: 64-byte-aligned blocks cut from one long range of addresses, best fit, split and merged, kept for reuse.
//
// * Process-wide and thread-safe (one mutex). The range is advised to use huge pages, which is worth about a tenth of a
//   matrix product's time, and grows by what is missing: memory taken stays close to the ledger's peak.
// * Under AddressSanitizer every block is a malloc of its own, so that use after free is seen.
// * Counts its own live bytes, apart from the ledger in memory.h: the two must agree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rz::allocator {

inline constexpr size_t kAlignment = 64;

// `bytes` > 0. Uninitialized memory; throws rz::Error naming the size when the system has none left. `shared`: from the range that
// other processes can map, if share() has made one.
void* allocate(size_t bytes, bool shared = false);
void deallocate(void* pointer, size_t bytes) noexcept;

// The first `bytes` of one region of addresses for dry runs, the same for every caller: never backed by memory, zero to read,
// a fault to write. Throws rz::Error when the system gives no address range that large.
void* reserved(size_t bytes);

// From now on, memory asked for as shared comes from a second range, backed by a file that has no name anywhere: another process maps
// it through /proc/PID/fd/FILE, and it is gone with the last process that has it, however that ends. False where the system has no such
// files or addresses. Once per process; later calls change nothing.
bool share();

// The shared range: `bytes` at `begin`, which are the first of `file`. A file of -1: there is none.
struct SharedRange {
  int file = -1;
  uintptr_t begin = 0;
  size_t bytes = 0;
};
SharedRange shared_range();

struct Stats {
  int64_t requested_bytes = 0;       // live, as asked for
  int64_t mapped_bytes = 0;          // taken from the system: live + cached
  int64_t system_allocations = 0;    // how often the system was asked
};
Stats stats();

// Gives the free end of the range back to the system.
void trim();

// Fills blocks with bytes that read as NaN in every floating-point type, when they are handed out and when they come back: who
// reads what is not there, or not there any more, gets caught. For tests; any thread, any time.
void set_poison(bool on);

}  // namespace rz::allocator
