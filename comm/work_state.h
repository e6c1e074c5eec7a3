// The shared state behind a Work. Written by the progress thread, read by any.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "comm/work.h"

namespace rz::comm {

struct Fingerprint;
struct Group;

// Signs of life of a progress thread, so that a waiting caller can tell a long operation from a thread that hangs.
struct Pulse {
  std::atomic<uint64_t> beats{0};
  double deadline_s = 60;
};

struct Work::State {
  std::mutex mutex;
  std::condition_variable ended;
  bool is_done = false;
  std::string error;  // empty = well
  std::string what;   // describes the operation
  WorkTimes times;
  std::shared_ptr<const Pulse> pulse;
  trace::Operation record;                   // number < 0: not recorded
  std::shared_ptr<trace::OperationLog> log;  // where it goes when done; null = not recorded

  struct Moved {
    int64_t first_byte_ns = 0;
    int64_t last_byte_ns = 0;
    uint64_t sent_bytes = 0;
  };
  // Numbers the operation and records that it is queued, where this thread has a recorder.
  void note(const Fingerprint& print, const Group& group);
  // Both on the progress thread.
  void start();
  void finish(const Moved& moved, std::string failure);
  void wait();
};

}  // namespace rz::comm
