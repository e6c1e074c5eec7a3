// The shared state behind a Work. Written by the progress thread, read by any.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "comm/work.h"

namespace rz::comm {

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

  void start();
  void finish(int64_t first_byte_ns, std::string failure);
};

}  // namespace rz::comm
