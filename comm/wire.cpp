#include "comm/wire.h"

#include <sched.h>

#include "comm/work.h"

namespace rz::comm {

namespace {
// Busy waiting is short: ranks and their compute threads share cores. A real-time thread (PromptThread) would yield to no thread
// that computes, so it does not.
constexpr int kSpins = 16;
constexpr int kYields = 48;
// Naps grow by an eighth: twenty of them are a millisecond.
constexpr std::chrono::microseconds kFirstNap{8};
constexpr std::chrono::microseconds kLongestNap{100};
// Where arrivals announce themselves; bounds how late an abort or a deadline is seen.
constexpr std::chrono::microseconds kAnnounced{20'000};
}  // namespace

void Wire::wait(Posted& posted) {
  auto nap = kFirstNap;
  int patience = kSpins + kYields;
  for (int polls = 0;; ++polls) {
    if (posted.test()) {
      patience_.progressed();
      return;
    }
    patience_.tick();
    if (polls == kSpins && sched_getscheduler(0) != SCHED_OTHER) patience = kSpins;
    if (polls >= patience || transport_.is_far_off()) {
      transport_.pause(nap, kAnnounced);
      nap = std::min(nap + nap / 8, kLongestNap);
    } else if (polls >= kSpins) {
      sched_yield();
    }
  }
}

const std::byte* Wire::wait_bytes(Posted& posted) {
  wait(posted);
  last_byte_ns_ = steady_now_ns();
  if (first_byte_ns_ == 0) first_byte_ns_ = last_byte_ns_;
  return posted.bytes();
}

}  // namespace rz::comm
