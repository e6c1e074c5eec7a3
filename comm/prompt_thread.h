// PromptThread: while it lives, the thread that made it runs soon after it is woken, even on cores that others keep busy. Meant for
// a thread that sleeps most of its time: what it delays is hidden communication.
//
// Sleeps end on time (timer slack). Where the system permits it (root, CAP_SYS_NICE, or RLIMIT_RTPRIO of 1 and more), the thread is
// scheduled round-robin before all ordinary ones; elsewhere it competes with them, and wakes up milliseconds late when there are
// more busy threads than cores. Threads that it starts are ordinary ones.
#pragma once

namespace rz::comm {

class PromptThread {
 public:
  PromptThread();
  ~PromptThread();
  PromptThread(const PromptThread&) = delete;
  PromptThread& operator=(const PromptThread&) = delete;

  bool is_real_time() const { return real_time_; }

 private:
  bool real_time_ = false;
};

}  // namespace rz::comm
