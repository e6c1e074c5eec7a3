#include "comm/prompt_thread.h"

#include <sched.h>
#include <sys/prctl.h>

namespace rz::comm {

PromptThread::PromptThread() {
  ::prctl(PR_SET_TIMERSLACK, 1);  // ns; by default sleeps end 50 us late
  const sched_param lowest{.sched_priority = ::sched_get_priority_min(SCHED_RR)};
  real_time_ = ::sched_getscheduler(0) == SCHED_OTHER && ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0;
}

PromptThread::~PromptThread() {
  const sched_param none{};
  if (real_time_) ::sched_setscheduler(0, SCHED_OTHER, &none);
  ::prctl(PR_SET_TIMERSLACK, 0);  // the default
}

}  // namespace rz::comm
