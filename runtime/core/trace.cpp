#include "runtime/core/trace.h"

#include <time.h>

#include <chrono>

#include "runtime/core/op_profile.h"

namespace rz {

int64_t steady_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t thread_cpu_ns() {
  timespec used{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return int64_t{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

namespace trace {

namespace {
constexpr size_t kUsualEvents = 1024;  // of a step; more make the vectors grow
thread_local Recorder* attached = nullptr;
}  // namespace

const char* name(Activity activity) {
  constexpr const char* kNames[kActivities] = {"other", "data", "forward", "backward", "optimizer"};
  return kNames[static_cast<size_t>(activity)];
}

void OperationLog::push(const Operation& operation) {
  const size_t tail = tail_.load(std::memory_order_relaxed);
  if (tail - head_.load(std::memory_order_acquire) == kCapacity) {
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  ring_[tail % kCapacity] = operation;
  tail_.store(tail + 1, std::memory_order_release);
}

bool OperationLog::pop(Operation& operation) {
  const size_t head = head_.load(std::memory_order_relaxed);
  if (head == tail_.load(std::memory_order_acquire)) return false;
  operation = ring_[head % kCapacity];
  head_.store(head + 1, std::memory_order_release);
  return true;
}

Recorder::Recorder(std::shared_ptr<MemoryTracker> memory, size_t keep) : memory_(std::move(memory)), keep_(std::max<size_t>(keep, 1)) {}

uint32_t Recorder::intern(std::string_view text) {
  const auto [found, is_new] = numbers_.try_emplace(std::string(text), static_cast<uint32_t>(names_.size()));
  if (is_new) names_.emplace_back(text);
  return found->second;
}

void Recorder::begin_step(int64_t step) {
  collect();
  Step next;
  if (steps_.size() >= keep_) {
    // The oldest step's memory serves the newest: recording allocates nothing once it runs.
    next = std::move(steps_.front());
    steps_.pop_front();
    first_operation_.pop_front();
    next.events.clear();
    next.operations.clear();
    next.memory.clear();
  }
  next.events.reserve(kUsualEvents);
  next.step = step;
  next.begin_ns = steady_now_ns();
  steps_.push_back(std::move(next));
  first_operation_.push_back(issued_);
  state_ = {};
  recording_ = true;
  sample_memory(steps_.back().begin_ns);
  steps_.back().cpu_ns = -thread_cpu_ns();
}

void Recorder::end_step() {
  recording_ = false;
  Step& step = steps_.back();
  step.cpu_ns += thread_cpu_ns();
  step.end_ns = steady_now_ns();
  sample_memory(step.end_ns);
  collect();
}

Recorder::State Recorder::set(State state, int64_t value) {
  const State before = state_;
  state_ = state;
  if (OpProfile* profile = OpProfile::current()) profile->ended(name(before.activity), OpProfile::Phase::other);
  if (recording_) {
    const int64_t now = steady_now_ns();
    steps_.back().events.push_back({Event::Kind::activity, state.activity, state.name, now, now, value});
    sample_memory(now);
  }
  return before;
}

void Recorder::mark() {
  if (!recording_) return;
  const int64_t now = steady_now_ns();
  steps_.back().events.push_back({Event::Kind::activity, state_.activity, state_.name, now, now, 0});
}

void Recorder::ready(uint32_t name, Event::Kind kind) {
  if (!recording_) return;
  const int64_t now = steady_now_ns();
  steps_.back().events.push_back({kind, state_.activity, name, now, now, 0});
}

int64_t Recorder::issue(uint32_t group, const std::vector<int>& members) {
  if (!recording_) return -1;
  if (const auto [found, is_new] = groups_.try_emplace(group); is_new) found->second = members;
  const int64_t now = steady_now_ns();
  steps_.back().events.push_back({Event::Kind::issue, state_.activity, kNoName, now, now, issued_});
  return issued_++;
}

void Recorder::wait(int64_t operation, int64_t begin_ns, int64_t end_ns, int64_t cpu_ns) {
  if (OpProfile* profile = OpProfile::current()) profile->ended("communication wait", OpProfile::Phase::other);
  if (!recording_) return;
  steps_.back().events.push_back({Event::Kind::wait, state_.activity, kNoName, begin_ns, end_ns, operation});
  steps_.back().cpu_ns -= cpu_ns;
}

void Recorder::collect() {
  Operation operation;
  while (log_->pop(operation)) {
    size_t at = steps_.size();
    while (at > 0 && operation.number < first_operation_[at - 1]) --at;
    if (at == 0) {
      ++forgotten_;
      continue;
    }
    steps_[at - 1].operations.push_back(operation);
  }
}

void Recorder::sample_memory(int64_t now_ns) {
  if (memory_) steps_.back().memory.push_back({now_ns, memory_->current()});
}

Recorder* current() { return attached; }

Attach::Attach(Recorder* recorder) : previous_(attached) { attached = recorder; }
Attach::~Attach() { attached = previous_; }

Scope::Scope(Activity activity, std::string_view name, int64_t value) : recorder_(current()) {
  if (recorder_ != nullptr) previous_ = recorder_->set({activity, name.empty() ? kNoName : recorder_->intern(name)}, value);
}
Scope::~Scope() {
  if (recorder_ != nullptr) recorder_->set(previous_);
}

}  // namespace trace
}  // namespace rz
