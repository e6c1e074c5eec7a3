#include "runtime/core/memory.h"

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/core/memory_limit.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/storage.h"

namespace rz {

namespace {
constexpr std::array<const char*, kCategories> kCategoryNames = {
    "parameter", "gradient", "optimizer_state", "activation", "activation_gradient", "communication", "workspace", "input"};
constexpr std::array<const char*, kPhases> kPhaseNames = {"init", "forward", "backward", "reduce", "optimizer", "publish", "save", "evaluate"};

thread_local Category t_ambient = Category::activation;

void raise(MemoryPeak& peak, const CategoryBytes& current, int64_t total) {
  for (size_t c = 0; c < kCategories; ++c) peak.by_category[c] = std::max(peak.by_category[c], current[c]);
  if (total > peak.total) {
    peak.total = total;
    peak.at_total_peak = current;
  }
}
}  // namespace

const char* name(Category c) { return kCategoryNames[static_cast<size_t>(c)]; }
const char* name(Phase p) { return kPhaseNames[static_cast<size_t>(p)]; }

int64_t MemoryTracker::current_bytes() const {
  std::lock_guard lock(mutex_);
  return current_total_;
}

int64_t MemoryTracker::current_bytes(Category c) const {
  std::lock_guard lock(mutex_);
  return current_[static_cast<size_t>(c)];
}

CategoryBytes MemoryTracker::current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

MemoryPeak MemoryTracker::peak() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

MemoryPeak MemoryTracker::peak(Phase phase) const {
  std::lock_guard lock(mutex_);
  return phase_peak_[static_cast<size_t>(phase)];
}

void MemoryTracker::reset_peaks() {
  std::lock_guard lock(mutex_);
  peak_ = {};
  phase_peak_ = {};
  raise_peaks();
}

void MemoryTracker::begin_window() {
  std::lock_guard lock(mutex_);
  window_ = {};
  raise_peaks();
}

MemoryPeak MemoryTracker::window_peak() const {
  std::lock_guard lock(mutex_);
  return window_;
}

int64_t MemoryTracker::unaccounted_bytes() const {
  std::lock_guard lock(mutex_);
  int64_t sum = 0;
  for (int64_t bytes : current_) sum += bytes;
  return allocated_ - sum;
}

std::vector<LiveHolder> MemoryTracker::live() const {
  std::map<std::pair<std::string, Category>, LiveHolder> groups;
  {
    std::lock_guard lock(mutex_);
    for (const Storage* s : live_) {
      auto& group = groups[{s->owner(), s->category()}];
      group.owner = s->owner();
      group.category = s->category();
      group.bytes += static_cast<int64_t>(s->size_bytes());
      ++group.count;
    }
  }
  std::vector<LiveHolder> holders;
  for (auto& [key, holder] : groups) holders.push_back(std::move(holder));
  std::ranges::stable_sort(holders, [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return holders;
}

void MemoryTracker::set_limit_bytes(int64_t bytes) {
  RZ_CHECK(bytes >= 0, "a memory limit of {} bytes is negative", bytes);
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void MemoryTracker::set_phase(Phase phase) {
  std::lock_guard lock(mutex_);
  phase_ = phase;
  raise_peaks();
}

Phase MemoryTracker::phase() const {
  std::lock_guard lock(mutex_);
  return phase_;
}

std::string MemoryTracker::report(size_t top) const {
  const auto now = current();
  const auto highest = peak();
  std::string text = fmt::format("phase {}: {} bytes held, peak {}\n", name(phase()), current_bytes(), highest.total);
  for (size_t c = 0; c < kCategories; ++c)
    if (highest.by_category[c] > 0)
      text += fmt::format("  {:<20}{:>16} now{:>16} peak\n", kCategoryNames[c], now[c], highest.by_category[c]);
  auto holders = live();
  if (holders.size() > top) holders.resize(top);
  if (!holders.empty()) text += "  largest holders:\n";
  for (const auto& h : holders) text += fmt::format("    {:>16} bytes in {:>5}  {} ({})\n", h.bytes, h.count, h.owner, name(h.category));
  return text;
}

void MemoryTracker::on_materialize(const Storage& storage, int64_t bytes) {
  int64_t would_be = 0;
  {
    std::lock_guard lock(mutex_);
    would_be = current_total_ + bytes;
    if (limit_ == 0 || would_be <= limit_) {
      current_total_ = would_be;
      allocated_ += bytes;
      current_[static_cast<size_t>(storage.category())] += bytes;
      live_.insert(&storage);
      raise_peaks();
      return;
    }
  }
  throw Error(fmt::format("{} {} bytes exceeded: '{}' asks for {} bytes of {} in phase {}, which would make {}\n{}", kMemoryLimitError, limit_,
                          storage.owner(), bytes, name(storage.category()), name(phase()), would_be, report()));
}

void MemoryTracker::on_release(const Storage& storage, int64_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  current_total_ -= bytes;
  allocated_ -= bytes;
  current_[static_cast<size_t>(storage.category())] -= bytes;
  live_.erase(&storage);
}

void MemoryTracker::raise_peaks() {
  raise(peak_, current_, current_total_);
  raise(window_, current_, current_total_);
  raise(phase_peak_[static_cast<size_t>(phase_)], current_, current_total_);
}

Category ambient_category() { return t_ambient; }

CategoryScope::CategoryScope(Category category) : previous_(t_ambient) { t_ambient = category; }
CategoryScope::~CategoryScope() { t_ambient = previous_; }

PhaseScope::PhaseScope(Phase phase) : tracker_(RankContext::current()->memory()), previous_(tracker_.phase()) { tracker_.set_phase(phase); }
PhaseScope::~PhaseScope() { tracker_.set_phase(previous_); }

}  // namespace rz
