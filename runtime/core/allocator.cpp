#include "runtime/core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "runtime/core/error.h"

namespace rz::allocator {

namespace {

constexpr size_t kSegmentBytes = size_t{32} << 20;  // smaller requests share segments of this size
constexpr size_t kHugePage = size_t{2} << 20;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

#ifdef RZ_ASAN

std::mutex g_mutex;
Stats g_stats;

#else

// Blocks tile their segment. Free blocks are found by (size, address); neighbours through the map of all blocks by address.
class Heap {
 public:
  void* allocate(size_t bytes) {
    const size_t size = round_up(bytes, kAlignment);
    std::lock_guard lock(mutex_);
    auto fit = free_.lower_bound({size, 0});
    if (fit == free_.end()) {
      map_segment(size);
      fit = free_.lower_bound({size, 0});
    }
    const auto [block_size, address] = *fit;
    free_.erase(fit);
    blocks_.at(address) = {size, false, blocks_.at(address).starts_segment};
    if (block_size > size) add_free(address + size, block_size - size, false);
    stats_.requested_bytes += static_cast<int64_t>(bytes);
    return reinterpret_cast<void*>(address);
  }

  void deallocate(void* pointer, size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    stats_.requested_bytes -= static_cast<int64_t>(bytes);
    auto block = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    block->second.is_free = true;
    if (auto next = std::next(block); next != blocks_.end() && next->second.is_free && !next->second.starts_segment) {
      free_.erase({next->second.size, next->first});
      block->second.size += next->second.size;
      blocks_.erase(next);
    }
    if (!block->second.starts_segment) {
      if (auto previous = std::prev(block); previous->second.is_free) {
        free_.erase({previous->second.size, previous->first});
        previous->second.size += block->second.size;
        blocks_.erase(block);
        block = previous;
      }
    }
    free_.insert({block->second.size, block->first});
  }

  Stats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  void trim() {
    std::lock_guard lock(mutex_);
    for (auto segment = segments_.begin(); segment != segments_.end();) {
      const auto block = blocks_.find(segment->first);
      if (!block->second.is_free || block->second.size != segment->second) {
        ++segment;
        continue;
      }
      free_.erase({block->second.size, block->first});
      blocks_.erase(block);
      munmap(reinterpret_cast<void*>(segment->first), segment->second);
      stats_.mapped_bytes -= static_cast<int64_t>(segment->second);
      segment = segments_.erase(segment);
    }
  }

 private:
  struct Block {
    size_t size = 0;
    bool is_free = false;
    bool starts_segment = false;
  };

  void add_free(uintptr_t address, size_t size, bool starts_segment) {
    blocks_[address] = {size, true, starts_segment};
    free_.insert({size, address});
  }

  void map_segment(size_t size) {
    const size_t bytes = size >= kSegmentBytes / 2 ? round_up(size, kHugePage) : kSegmentBytes;
    // Over-map by one huge page and cut, so that the segment starts on a huge-page boundary.
    void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    RZ_CHECK(raw != MAP_FAILED, "out of memory: the system refused {} bytes (ringzero holds {} already)", bytes, stats_.mapped_bytes);
    const auto start = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = round_up(start, kHugePage);
    if (aligned > start) munmap(raw, aligned - start);
    if (const size_t tail = start + kHugePage - aligned; tail > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
    madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
    segments_[aligned] = bytes;
    stats_.mapped_bytes += static_cast<int64_t>(bytes);
    ++stats_.system_allocations;
    add_free(aligned, bytes, true);
  }

  std::mutex mutex_;
  std::map<uintptr_t, Block> blocks_;
  std::set<std::pair<size_t, uintptr_t>> free_;
  std::map<uintptr_t, size_t> segments_;
  Stats stats_;
};

// Never destroyed: tensors held by other statics may still be freed at exit.
Heap& heap() {
  static Heap* instance = new Heap;
  return *instance;
}

#endif

constexpr size_t kLargestReserve = size_t{32} << 40;  // of the 128 TiB that a process can address
constexpr size_t kSmallestReserve = size_t{1} << 30;

struct Reserve {
  void* start = nullptr;
  size_t bytes = 0;
};

// As large as the system allows: sanitizers and limits on address space leave less.
Reserve map_reserve() {
  for (size_t bytes = kLargestReserve; bytes >= kSmallestReserve; bytes /= 2) {
    void* start = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) continue;
    madvise(start, bytes, MADV_DONTDUMP);
    return {start, bytes};
  }
  return {};
}

}  // namespace

void* reserved(size_t bytes) {
  static const Reserve reserve = map_reserve();
  RZ_CHECK(bytes <= reserve.bytes, "a dry run cannot address {} bytes in one piece; {} are reserved", bytes, reserve.bytes);
  return reserve.start;
}

#ifdef RZ_ASAN

void* allocate(size_t bytes) {
  void* pointer = std::aligned_alloc(kAlignment, round_up(bytes, kAlignment));
  RZ_CHECK(pointer != nullptr, "out of memory: the system refused {} bytes", bytes);
  std::lock_guard lock(g_mutex);
  g_stats.requested_bytes += static_cast<int64_t>(bytes);
  g_stats.mapped_bytes = g_stats.requested_bytes;
  ++g_stats.system_allocations;
  return pointer;
}

void deallocate(void* pointer, size_t bytes) noexcept {
  std::free(pointer);
  std::lock_guard lock(g_mutex);
  g_stats.requested_bytes -= static_cast<int64_t>(bytes);
}

Stats stats() {
  std::lock_guard lock(g_mutex);
  return g_stats;
}

void trim() {}

#else

void* allocate(size_t bytes) { return heap().allocate(bytes); }
void deallocate(void* pointer, size_t bytes) noexcept { heap().deallocate(pointer, bytes); }
Stats stats() { return heap().stats(); }
void trim() { heap().trim(); }

#endif

}  // namespace rz::allocator
