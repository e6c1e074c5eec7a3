#include "runtime/core/allocator.h"

#include <atomic>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "runtime/core/error.h"

namespace rz::allocator {

namespace {

#ifdef RZ_TSAN
constexpr size_t kArenaBytes = size_t{64} << 30;  // ThreadSanitizer leaves fewer addresses
#else
constexpr size_t kArenaBytes = size_t{1} << 40;
#endif
constexpr size_t kHugePage = size_t{2} << 20;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

#ifdef RZ_ASAN
std::mutex g_mutex;
Stats g_stats;
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; an error that changes nothing on older ones
#endif

// Blocks tile their arena: a long range of reserved addresses whose front part, up to `top`, may be used. Neighbours always merge, and
// a request that no free block serves moves the top by what is missing. Free blocks are found by (size, address), neighbours
// through the map of all blocks by address.
//
// A shared heap has one arena, whose memory is a file without a name; block addresses are offsets in that file, moved by its begin.
class Heap {
 public:
  Heap() = default;
  // Takes over `file`, whose first `bytes` the arena maps at `begin`; both multiples of a huge page.
  Heap(int file, void* begin, size_t bytes) : file_(file) {
    const auto start = reinterpret_cast<uintptr_t>(begin);
    arenas_.push_back({start, start, start + bytes});
  }

  SharedRange range() const { return {file_, arenas_[0].begin, arenas_[0].end - arenas_[0].begin}; }
  bool contains(const void* pointer) const {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    return address >= arenas_[0].begin && address < arenas_[0].end;
  }

  void* allocate(size_t bytes) {
    const size_t size = round_up(bytes, kAlignment);
    std::lock_guard lock(mutex_);
    auto fit = free_.lower_bound({size, 0});
    if (fit == free_.end()) {
      grow(size);
      fit = free_.lower_bound({size, 0});
    }
    const auto [block_size, address] = *fit;
    free_.erase(fit);
    blocks_.at(address) = {size, false};
    if (block_size > size) add_free(address + size, block_size - size);
    stats_.requested_bytes += static_cast<int64_t>(bytes);
    return reinterpret_cast<void*>(address);
  }

  void deallocate(void* pointer, size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    stats_.requested_bytes -= static_cast<int64_t>(bytes);
    auto block = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    block->second.is_free = true;
    // Arenas do not touch: there is a guard behind each top.
    if (auto next = std::next(block); next != blocks_.end() && next->second.is_free && block->first + block->second.size == next->first) {
      free_.erase({next->second.size, next->first});
      block->second.size += next->second.size;
      blocks_.erase(next);
    }
    if (block != blocks_.begin()) {
      if (auto previous = std::prev(block); previous->second.is_free && previous->first + previous->second.size == block->first) {
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

  // The free end of each arena goes back to the system.
  void trim() {
    std::lock_guard lock(mutex_);
    for (Arena& arena : arenas_) {
      const auto last = last_block(arena);
      if (last == blocks_.end() || !last->second.is_free) continue;
      const uintptr_t keep = round_up(last->first, kHugePage);
      if (keep >= arena.top) continue;
      const size_t bytes = arena.top - keep;
      if (madvise(reinterpret_cast<void*>(keep), bytes, file_ < 0 ? MADV_DONTNEED : MADV_REMOVE) != 0) continue;
      if (mprotect(reinterpret_cast<void*>(keep), bytes, PROT_NONE) != 0) continue;
      const uintptr_t start = last->first;
      free_.erase({last->second.size, start});
      blocks_.erase(last);
      if (keep > start) add_free(start, keep - start);
      arena.top = keep;
      stats_.mapped_bytes -= static_cast<int64_t>(bytes);
    }
  }

 private:
  struct Block {
    size_t size = 0;
    bool is_free = false;
  };
  struct Arena {
    uintptr_t begin = 0;
    uintptr_t top = 0;
    uintptr_t end = 0;
  };
  using Blocks = std::map<uintptr_t, Block>;

  void add_free(uintptr_t address, size_t size) {
    blocks_[address] = {size, true};
    free_.insert({size, address});
  }

  // The block that ends at the arena's top; end() while it is empty.
  Blocks::iterator last_block(const Arena& arena) {
    const auto after = blocks_.lower_bound(arena.top);
    if (arena.top == arena.begin || after == blocks_.begin()) return blocks_.end();
    return std::prev(after);
  }

  // Afterwards some free block has `size` bytes or more.
  void grow(size_t size) {
    if (arenas_.empty() || !extend(arenas_.back(), size)) {
      RZ_CHECK(file_ < 0, "out of memory: {} bytes more than the {} that ranks of a machine can share", size, stats_.mapped_bytes);
      reserve(size);
      RZ_CHECK(extend(arenas_.back(), size), "out of memory: the system refused {} bytes (ringzero holds {} already)", size, stats_.mapped_bytes);
    }
  }

  bool extend(Arena& arena, size_t size) {
    const auto last = last_block(arena);
    const bool joins = last != blocks_.end() && last->second.is_free;
    const size_t bytes = round_up(joins ? size - last->second.size : size, kHugePage);
    if (bytes > arena.end - arena.top) return false;
    RZ_CHECK(mprotect(reinterpret_cast<void*>(arena.top), bytes, PROT_READ | PROT_WRITE) == 0,
             "out of memory: the system refused {} bytes (ringzero holds {} already)", bytes, stats_.mapped_bytes);
    if (file_ >= 0) collapse(arena.top, bytes);
    if (joins) {
      free_.erase({last->second.size, last->first});
      last->second.size += bytes;
      free_.insert({last->second.size, last->first});
    } else {
      add_free(arena.top, bytes);
    }
    arena.top += bytes;
    stats_.mapped_bytes += static_cast<int64_t>(bytes);
    ++stats_.system_allocations;
    return true;
  }

  // Huge pages for shared memory, whatever the system's setting: a page of 2 MiB that has begun can be completed.
  static void collapse(uintptr_t begin, size_t bytes) {
    for (size_t at = 0; at < bytes; at += kHugePage) *reinterpret_cast<volatile std::byte*>(begin + at) = std::byte{0};
    madvise(reinterpret_cast<void*>(begin), bytes, MADV_COLLAPSE);
  }

  // Addresses alone, which cost nothing; less where the system limits them.
  void reserve(size_t size) {
    const size_t least = round_up(size, kHugePage) + 2 * kHugePage;
    void* raw = MAP_FAILED;
    size_t bytes = std::max(kArenaBytes, least);
    for (; raw == MAP_FAILED && bytes >= least; bytes /= 2)
      if (raw = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); raw != MAP_FAILED) break;
    RZ_CHECK(raw != MAP_FAILED, "out of memory: the system refused {} bytes (ringzero holds {} already)", size, stats_.mapped_bytes);
    const auto start = reinterpret_cast<uintptr_t>(raw);
    Arena arena;
    arena.begin = arena.top = round_up(start, kHugePage);
    arena.end = (start + bytes) / kHugePage * kHugePage - kHugePage;  // the last page is the guard
    madvise(reinterpret_cast<void*>(arena.begin), arena.end - arena.begin, MADV_HUGEPAGE);
    arenas_.push_back(arena);
  }

  std::mutex mutex_;
  Blocks blocks_;
  std::set<std::pair<size_t, uintptr_t>> free_;
  std::vector<Arena> arenas_;  // the last one grows
  Stats stats_;
  int file_ = -1;
};

// Null until share().
std::atomic<Heap*> g_shared{nullptr};

#ifndef RZ_ASAN
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

std::atomic<bool> g_poison{false};

// 0xFF.. is a quiet NaN in f64, f32, bf16 and f16, and -1 in integers.
void* poisoned(void* pointer, size_t bytes) noexcept {
  if (g_poison.load(std::memory_order_relaxed)) std::memset(pointer, 0xff, bytes);
  return pointer;
}

}  // namespace

void* reserved(size_t bytes) {
  static const Reserve reserve = map_reserve();
  RZ_CHECK(bytes <= reserve.bytes, "a dry run cannot address {} bytes in one piece; {} are reserved", bytes, reserve.bytes);
  return reserve.start;
}

#ifdef RZ_ASAN

namespace {

void* allocate_own(size_t bytes) {
  void* pointer = std::aligned_alloc(kAlignment, round_up(bytes, kAlignment));
  RZ_CHECK(pointer != nullptr, "out of memory: the system refused {} bytes", bytes);
  std::lock_guard lock(g_mutex);
  g_stats.requested_bytes += static_cast<int64_t>(bytes);
  g_stats.mapped_bytes = g_stats.requested_bytes;
  ++g_stats.system_allocations;
  return poisoned(pointer, bytes);
}

// No poison here: AddressSanitizer reports the use of freed memory itself.
void deallocate_own(void* pointer, size_t bytes) noexcept {
  std::free(pointer);
  std::lock_guard lock(g_mutex);
  g_stats.requested_bytes -= static_cast<int64_t>(bytes);
}

Stats own_stats() {
  std::lock_guard lock(g_mutex);
  return g_stats;
}

void trim_own() {}

}  // namespace

#else

namespace {

void* allocate_own(size_t bytes) { return poisoned(heap().allocate(bytes), bytes); }
void deallocate_own(void* pointer, size_t bytes) noexcept { heap().deallocate(poisoned(pointer, bytes), bytes); }
Stats own_stats() { return heap().stats(); }
void trim_own() { heap().trim(); }

}  // namespace

#endif

void* allocate(size_t bytes, bool shared) {
  Heap* heap = shared ? g_shared.load(std::memory_order_acquire) : nullptr;
  return heap != nullptr ? poisoned(heap->allocate(bytes), bytes) : allocate_own(bytes);
}

void deallocate(void* pointer, size_t bytes) noexcept {
  Heap* heap = g_shared.load(std::memory_order_acquire);
  if (heap != nullptr && heap->contains(pointer)) return heap->deallocate(poisoned(pointer, bytes), bytes);
  deallocate_own(pointer, bytes);
}

Stats stats() {
  Stats all = own_stats();
  if (Heap* heap = g_shared.load(std::memory_order_acquire); heap != nullptr) {
    const Stats shared = heap->stats();
    all.requested_bytes += shared.requested_bytes;
    all.mapped_bytes += shared.mapped_bytes;
    all.system_allocations += shared.system_allocations;
  }
  return all;
}

void trim() {
  trim_own();
  if (Heap* heap = g_shared.load(std::memory_order_acquire); heap != nullptr) heap->trim();
}

bool share() {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (g_shared.load(std::memory_order_acquire) != nullptr) return true;
  // No rank can hold more than the machine has; a range that is not too long leaves addresses for the ranges of many peers.
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = round_up(memory, kHugePage);
  const int file = memfd_create("ringzero shared memory", MFD_CLOEXEC);
  if (file < 0) return false;
  void* raw = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(bytes)) == 0)
    raw = mmap(nullptr, bytes + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return close(file), false;
  void* begin = reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(raw), kHugePage));
  if (mmap(begin, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file, 0) == MAP_FAILED) {
    munmap(raw, bytes + kHugePage);
    close(file);
    return false;
  }
  g_shared.store(new Heap(file, begin, bytes), std::memory_order_release);
  return true;
}

SharedRange shared_range() {
  const Heap* heap = g_shared.load(std::memory_order_acquire);
  return heap != nullptr ? heap->range() : SharedRange{};
}

void set_poison(bool on) { g_poison = on; }

}  // namespace rz::allocator
