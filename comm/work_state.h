// The shared state behind a Work. Written by the progress thread, read by any.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "comm/control.h"
#include "comm/work.h"

namespace rz::comm {

class Progress;
struct Group;

// Signs of life of a progress thread, so that a waiting caller can tell a long operation from a thread that hangs.
struct Pulse {
  std::atomic<uint64_t> beats{0};
  mutable std::atomic<bool> hangs{false};  // somebody has watched it stand still
  double deadline_s = 60;
  std::string who;  // "rank 2/4 host h"
};

// The progress thread ends every operation within its deadline. Should it hang itself (inside the MPI library, say), its beats stop:
// that is counted in slices that the watching thread has lived through, so that a stopped process is not blamed.
class PulseWatch {
 public:
  static constexpr std::chrono::milliseconds kSlice{100};

  explicit PulseWatch(const Pulse& pulse) : pulse_(pulse), beats_(pulse.beats.load(std::memory_order_relaxed)) {}
  // After each slice.
  bool sees_a_hang() {
    const uint64_t now = pulse_.beats.load(std::memory_order_relaxed);
    silent_s_ = now == beats_ ? silent_s_ + 0.1 : 0;
    if (now != beats_) pulse_.hangs = false;
    beats_ = now;
    if (silent_s_ > pulse_.deadline_s + 2) pulse_.hangs = true;
    return pulse_.hangs;
  }
  double silent_s() const { return silent_s_; }

 private:
  const Pulse& pulse_;
  uint64_t beats_;
  double silent_s_ = 0;
};

struct Work::State {
  std::mutex mutex;
  std::condition_variable ended;
  std::atomic<bool> is_done{false};  // set under the mutex, last
  std::string error;                 // empty = well
  Fingerprint print;
  WorkTimes times;
  std::shared_ptr<const Pulse> pulse;
  std::weak_ptr<Progress> runner;
  bool is_taken_up = false;
  trace::Operation record;                   // number < 0: not recorded
  std::shared_ptr<trace::OperationLog> log;  // where it goes when done; null = not recorded

  struct Moved {
    int64_t first_byte_ns = 0;
    int64_t last_byte_ns = 0;
    uint64_t sent_bytes = 0;
    int64_t done_ns = 0;  // 0 = now
  };
  // Numbers the operation and records that it is queued, where this thread has a recorder.
  void note(const Group& group);
  // Describes the operation: "rank 2/4 host h op#7 ...".
  std::string what() const;
  // It begins now, on the progress thread, which takes it up. What a caller begins, it takes up later, unless a caller ends it.
  void start();
  void take_up();
  void finish(const Moved& moved, std::string failure);
  bool has_ended() const { return is_done.load(std::memory_order_acquire); }
  void wait();
};

}  // namespace rz::comm
