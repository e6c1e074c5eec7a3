#include "comm/wire.h"

#include <sched.h>

#include "comm/work.h"

namespace rz::comm {

namespace {
// Busy waiting is short: ranks and their compute threads share cores.
constexpr int kSpins = 16;
constexpr int kYields = 48;
constexpr std::chrono::microseconds kFirstNap{10};
constexpr std::chrono::microseconds kLongestNap{100};
// Where arrivals announce themselves; bounds how late an abort or a deadline is seen.
constexpr std::chrono::microseconds kAnnounced{20'000};
}  // namespace

void Wire::wait(Posted& posted) {
  auto nap = kFirstNap;
  for (int polls = 0;; ++polls) {
    if (posted.test()) {
      patience_.progressed();
      return;
    }
    patience_.tick();
    const bool poll_on = polls < kSpins + kYields && !transport_.is_far_off();
    if (poll_on && polls < kSpins) continue;
    if (poll_on) {
      sched_yield();
    } else {
      transport_.pause(nap, kAnnounced);
      nap = std::min(nap * 2, kLongestNap);
    }
  }
}

const std::byte* Wire::wait_bytes(Posted& posted) {
  wait(posted);
  if (first_byte_ns_ == 0) first_byte_ns_ = steady_now_ns();
  return posted.bytes();
}

}  // namespace rz::comm
