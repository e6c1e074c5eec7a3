// The ledger: every byte that ringzero holds belongs to exactly one category, counted where it is allocated (decision D2).
//
// * One MemoryTracker per rank. A Storage remembers its tracker, so a byte freed on any thread is credited to its rank.
// * Current and peak bytes per category, over all, per phase and over a window of the caller's; `live()` lists who holds what.
// * Thread-safe: all members lock. Counting costs a lock per allocation, not per access.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace rz {

// What a byte is for. Gathered full weights and full gradients in flight are `communication`: they live one communication window.
enum class Category : uint8_t {
  parameter, gradient, optimizer_state, activation, activation_gradient, communication, workspace, input
};
inline constexpr size_t kCategories = 8;
const char* name(Category c);

// What a rank is doing; peaks are kept per phase.
enum class Phase : uint8_t { init, forward, backward, reduce, optimizer, publish, save, evaluate };
inline constexpr size_t kPhases = 8;
const char* name(Phase p);

using CategoryBytes = std::array<int64_t, kCategories>;

struct MemoryPeak {
  int64_t total = 0;
  CategoryBytes by_category{};      // each category's own peak
  CategoryBytes at_total_peak{};    // what the total's peak consisted of
};

struct LiveHolder {
  std::string owner;
  Category category = Category::workspace;
  int64_t bytes = 0;
  int64_t count = 0;
};

class Storage;

class MemoryTracker {
 public:
  MemoryTracker() = default;
  MemoryTracker(const MemoryTracker&) = delete;
  MemoryTracker& operator=(const MemoryTracker&) = delete;

  int64_t current_bytes() const;
  int64_t current_bytes(Category c) const;
  CategoryBytes current() const;
  MemoryPeak peak() const;
  MemoryPeak peak(Phase phase) const;
  // Peaks start again from the current bytes.
  void reset_peaks();
  // Peaks since the last begin_window(), such as those of a step; the others go on.
  void begin_window();
  MemoryPeak window_peak() const;

  // Sum over categories against the allocator's own count of this tracker's bytes: always 0 (the self-check of the ledger).
  int64_t unaccounted_bytes() const;

  // Largest holders first, grouped by (owner, category).
  std::vector<LiveHolder> live() const;

  // A breach of the limit throws rz::Error with the ledger and the largest holders; 0 = none.
  void set_limit_bytes(int64_t bytes);

  void set_phase(Phase phase);
  Phase phase() const;

  // One line per category, current and peak, and the `top` largest holders.
  std::string report(size_t top = 8) const;

 private:
  friend class Storage;
  void on_materialize(const Storage& storage, int64_t bytes);  // may throw: limit
  void on_release(const Storage& storage, int64_t bytes) noexcept;
  void raise_peaks();

  mutable std::mutex mutex_;
  CategoryBytes current_{};
  int64_t current_total_ = 0;
  int64_t allocated_ = 0;  // counted apart from the categories
  int64_t limit_ = 0;
  Phase phase_ = Phase::init;
  MemoryPeak peak_;
  MemoryPeak window_;
  std::array<MemoryPeak, kPhases> phase_peak_;
  std::set<const Storage*> live_;
};

// The ambient category of this thread for allocations that do not name one; `activation` when none is set.
Category ambient_category();

class CategoryScope {
 public:
  explicit CategoryScope(Category category);
  ~CategoryScope();
  CategoryScope(const CategoryScope&) = delete;
  CategoryScope& operator=(const CategoryScope&) = delete;

 private:
  Category previous_;
};

// Sets the phase of this thread's rank and restores the former one.
class PhaseScope {
 public:
  explicit PhaseScope(Phase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  MemoryTracker& tracker_;
  Phase previous_;
};

}  // namespace rz
