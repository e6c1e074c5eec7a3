#include "comm/wire.h"

#include <sched.h>

#include "comm/work.h"

namespace rz::comm {

namespace {
constexpr std::chrono::microseconds kLongestNap{100};
// Where arrivals announce themselves; bounds how late an abort or a deadline is seen.
constexpr std::chrono::microseconds kAnnounced{20'000};
}  // namespace

// Busy waiting is short: ranks and their compute threads share cores. A real-time thread (PromptThread) would yield to no thread
// that computes, so it does not. Naps grow by an eighth: twenty of them are a millisecond.
void Waiting::pass(bool announces) {
  if (polls_ == kSpins && sched_getscheduler(0) != SCHED_OTHER) patience_ = kSpins;
  if (polls_ >= patience_ || transport_.is_far_off()) {
    transport_.pause(nap_, announces ? kAnnounced : nap_);
    nap_ = std::min(nap_ + nap_ / 8, kLongestNap);
  } else if (polls_ >= kSpins) {
    sched_yield();
  }
  ++polls_;
}

void Wire::wait(Posted& posted) {
  for (Waiting waiting(transport_); !posted.test(); waiting.pass(true)) patience_.tick();
  patience_.progressed();
}

const std::byte* Wire::wait_bytes(Posted& posted) {
  wait(posted);
  last_byte_ns_ = steady_now_ns();
  if (first_byte_ns_ == 0) first_byte_ns_ = last_byte_ns_;
  return posted.bytes();
}

}  // namespace rz::comm
