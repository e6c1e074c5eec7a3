// Trace: what one rank did and when, recorded all the time and without making anybody wait.
//
// A Recorder keeps the last steps of one rank: the events of its main thread (what it computes, parameters whose gradients became
// ready, collectives issued, waits for them), its collectives with their times, and the ledger at each change of activity.
// * Recording is appending: no lock but the ledger's own, no system call but the clocks'. The main thread alone writes events; the
//   progress thread hands over finished collectives through a single-producer single-consumer ring (OperationLog).
// * It never synchronizes ranks and changes nothing that they compute. What does not fit is counted, not waited for.
// * Where no Recorder is attached to a thread, every call site is a test of one pointer.
// In a dry run (rank_context.h) the same events come in the same order; their times mean nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/core/memory.h"

namespace rz {

// Nanoseconds of the machine's steady clock; the clock of every time in a trace.
int64_t steady_now_ns();
// Nanoseconds of a core that this thread has used.
int64_t thread_cpu_ns();

constexpr int64_t to_ns(double seconds) { return static_cast<int64_t>(seconds * 1e9); }
constexpr double to_s(int64_t ns) { return static_cast<double>(ns) * 1e-9; }
constexpr double to_ms(int64_t ns) { return static_cast<double>(ns) * 1e-6; }

namespace trace {

// What the main thread is doing; `other` is what a step spends between the named activities.
enum class Activity : uint8_t { other, data, forward, backward, optimizer };
inline constexpr int kActivities = 5;
const char* name(Activity activity);

inline constexpr uint32_t kNoName = 0;

struct Event {
  enum class Kind : uint8_t {
    activity,      // `activity` on `name` begins, `value` = elements to update (optimizer)
    ready,         // the gradient of the parameter `name` is complete
    issue,         // collective number `value` is queued
    wait,          // [begin, end]: waits for collective number `value`
    bucket_ready,  // all gradients of the bucket `name` are complete
  };
  Kind kind = Kind::activity;
  Activity activity = Activity::other;
  uint32_t name = kNoName;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int64_t value = 0;
};

// A collective on this rank.
struct Operation {
  int64_t number = -1;  // counts this rank's recorded collectives
  uint32_t name = kNoName;
  uint8_t kind = 0;       // comm::CollectiveKind
  uint8_t order = 0;      // comm::Order
  uint32_t group = 0;     // comm::Group::id
  uint64_t sequence = 0;  // (group, sequence) is the same operation on every rank
  uint64_t bytes = 0;     // of the full buffer
  uint64_t sent_bytes = 0;
  int64_t queued_ns = 0;
  int64_t started_ns = 0;     // the progress thread, or the caller of a short one, took it up
  int64_t first_byte_ns = 0;  // 0: nothing ever arrived
  int64_t last_byte_ns = 0;
  int64_t done_ns = 0;
  int64_t cpu_ns = 0;  // of a core, used by the progress thread between started and done
};

struct MemorySample {
  int64_t time_ns = 0;
  CategoryBytes bytes{};
};

struct Step {
  int64_t step = 0;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int64_t cpu_ns = 0;  // of a core, used by the main thread outside its waits
  std::vector<Event> events;
  std::vector<Operation> operations;  // issued in this step; some may end in the next
  std::vector<MemorySample> memory;
};

// Finished operations on their way from the progress thread to the main thread.
class OperationLog {
 public:
  void push(const Operation& operation);  // who ends it: the progress thread or, while nothing is queued there, the main thread
  bool pop(Operation& operation);         // main thread
  int64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kCapacity = 8192;
  std::vector<Operation> ring_ = std::vector<Operation>(kCapacity);
  std::atomic<size_t> head_{0};
  std::atomic<size_t> tail_{0};
  std::atomic<int64_t> dropped_{0};
};

class Recorder {
 public:
  // Keeps the last `keep` steps; more are forgotten, oldest first.
  Recorder(std::shared_ptr<MemoryTracker> memory, size_t keep);

  // The number of a name, from 1. Cheap after the first time.
  uint32_t intern(std::string_view text);
  const std::vector<std::string>& names() const { return names_; }

  // Between these two everything is recorded, outside them nothing.
  void begin_step(int64_t step);
  void end_step();
  bool recording() const { return recording_; }

  // Switches the activity and returns the one before.
  struct State {
    Activity activity = Activity::other;
    uint32_t name = kNoName;
  };
  State set(State state, int64_t value = 0);
  // The same activity goes on, and here is a place to tell what came before from what comes after; without a sample of memory.
  void mark();
  void ready(uint32_t name, Event::Kind kind = Event::Kind::ready);

  // For the communicator. Numbers an operation and notes that it is queued; -1 while nothing is recorded.
  int64_t issue(uint32_t group, const std::vector<int>& members);
  void wait(int64_t operation, int64_t begin_ns, int64_t end_ns, int64_t cpu_ns);  // cpu_ns: of a core, used meanwhile
  const std::shared_ptr<OperationLog>& log() const { return log_; }

  // Collectives that ended since the last call join their steps.
  void collect();
  const std::deque<Step>& steps() const { return steps_; }
  // World ranks of the groups whose operations were recorded.
  const std::unordered_map<uint32_t, std::vector<int>>& groups() const { return groups_; }
  int64_t dropped() const { return log_->dropped() + forgotten_; }

 private:
  void sample_memory(int64_t now_ns);

  std::shared_ptr<MemoryTracker> memory_;
  size_t keep_;
  std::vector<std::string> names_{""};
  std::unordered_map<std::string, uint32_t> numbers_;
  std::unordered_map<uint32_t, std::vector<int>> groups_;
  std::shared_ptr<OperationLog> log_ = std::make_shared<OperationLog>();
  bool recording_ = false;
  State state_;
  int64_t issued_ = 0;
  int64_t forgotten_ = 0;  // operations that ended after their step was forgotten
  std::deque<Step> steps_;
  std::deque<int64_t> first_operation_;  // of each of steps_
};

// The recorder attached to this thread; null = nothing is recorded.
Recorder* current();

class Attach {
 public:
  explicit Attach(Recorder* recorder);
  ~Attach();
  Attach(const Attach&) = delete;
  Attach& operator=(const Attach&) = delete;

 private:
  Recorder* previous_;
};

// An activity for a scope's life; the one before it goes on afterwards.
class Scope {
 public:
  explicit Scope(Activity activity, std::string_view name = {}, int64_t value = 0);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Recorder* recorder_;
  Recorder::State previous_;
};

}  // namespace trace
}  // namespace rz
