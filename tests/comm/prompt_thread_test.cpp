// A thread that wakes on time, for as long as it says, and its children not at all.
#include "comm/prompt_thread.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>

#include <thread>

namespace rz {
namespace {

// sched_getscheduler() also says whether threads that this one starts are ordinary again.
int policy() { return sched_getscheduler(0) & ~SCHED_RESET_ON_FORK; }

TEST(PromptThread, IsRealTimeWhereThatIsPermittedAndOrdinaryAfterwards) {
  std::thread([] {
    const int slack = prctl(PR_GET_TIMERSLACK);
    ASSERT_EQ(policy(), SCHED_OTHER);
    {
      const comm::PromptThread prompt;
      EXPECT_EQ(policy(), prompt.is_real_time() ? SCHED_RR : SCHED_OTHER);
      const sched_param lowest{.sched_priority = 1};
      EXPECT_EQ(prompt.is_real_time(), sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0) << "as the system permits";
      EXPECT_EQ(prctl(PR_GET_TIMERSLACK), prompt.is_real_time() ? 0 : 1) << "a real-time thread has none";
      std::thread([] { EXPECT_EQ(policy(), SCHED_OTHER); }).join();
    }
    EXPECT_EQ(policy(), SCHED_OTHER);
    EXPECT_EQ(prctl(PR_GET_TIMERSLACK), slack);
  }).join();
}

}  // namespace
}  // namespace rz
