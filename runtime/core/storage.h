// A block of memory that can be released under live views (decision D1).
//
// 1. A Storage is materialized (has bytes) or released (has none); views hold the Storage, never its bytes.
// 2. data() of a released Storage throws, naming its owner: no view can read weights that are sharded away.
// 3. In a dry run (rank_context.h) it is counted as always, but its bytes are a part of one region that all share: reserved
//    addresses, zero to read, a fault to write.
// 4. Its category is fixed, counted in the rank's MemoryTracker, and decides whether ranks of this machine can map it (storage.cpp).
// Not thread-safe; hand it over between threads with a happens-before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/core/device.h"
#include "runtime/core/memory.h"

namespace rz {

class Storage {
 public:
  // Materialized, uninitialized memory counted to the calling thread's rank.
  static std::shared_ptr<Storage> make(size_t bytes, Category category, std::string owner);
  // The same, released: costs nothing until materialize().
  static std::shared_ptr<Storage> make_released(size_t bytes, Category category, std::string owner);

  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();

  std::byte* data() {
    if (data_ == nullptr) [[unlikely]] throw_released();
    return data_;
  }
  size_t size_bytes() const { return size_bytes_; }
  bool is_materialized() const { return data_ != nullptr; }

  // Gives it (uninitialized) bytes; no effect when it has them. May throw: memory limit, out of memory.
  void materialize();
  // Gives the bytes back; no effect when it has none.
  void release() noexcept;

  Device device() const { return device_; }
  Category category() const { return category_; }
  const std::string& owner() const { return owner_; }
  void set_owner(std::string owner) { owner_ = std::move(owner); }

  // Counts in-place changes, so that backward can refuse a saved tensor that was changed after it was saved.
  uint32_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  Storage(size_t bytes, Category category, std::string owner);
  [[noreturn]] void throw_released() const;

  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  uint32_t version_ = 0;
  bool dry_ = false;
  Category category_;
  Device device_;
  std::string owner_;
  std::shared_ptr<MemoryTracker> tracker_;
};

}  // namespace rz
