// The shared state behind a Work. Written by the progress thread, read by any.
#pragma once

#include <atomic>
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
  double deadline_s = 60;
  std::string who;  // "rank 2/4 host h"
};

struct Work::State {
  std::mutex mutex;
  std::condition_variable ended;
  std::atomic<bool> is_done{false};  // set under the mutex, last
  std::string error;  // empty = well
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
