// Work: the handle of one asynchronous collective. Cheap to copy; all copies speak of the same operation.
// Thread safety: any thread may call anything. Dropping a Work does not cancel the operation; its buffers must live until
// it is done. An error nobody waited for is not lost: every later operation of the job fails with its text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/core/trace.h"

namespace rz {
class Stream;
}

namespace rz::comm {

// On the clock of steady_now_ns(); 0 = has not happened.
struct WorkTimes {
  int64_t queued_ns = 0;      // the caller issued it
  int64_t started_ns = 0;     // the progress thread began it
  int64_t first_byte_ns = 0;  // the first payload bytes arrived from a peer (0 if none ever do: one rank, no elements)
  int64_t done_ns = 0;        // result in place, or failed
};

class Work {
 public:
  // A work that was done from the start.
  Work() = default;

  // Blocks until the operation is done on this rank: results are in place and buffers are the caller's again.
  // Throws CommError if it failed; every call does. The wait is recorded where a recorder is attached (runtime/core/trace.h).
  void wait() const;

  // Has it ended, well or not? Never blocks, never throws.
  bool done() const;

  // Makes `stream` wait for the operation; on the CPU this is wait().
  void join(Stream& stream) const;

  // What has happened so far.
  WorkTimes times() const;

  struct State;  // owned by the progress thread's queue and by every copy
  explicit Work(std::shared_ptr<State> state) : state_(std::move(state)) {}

 private:
  std::shared_ptr<State> state_;
};

}  // namespace rz::comm
