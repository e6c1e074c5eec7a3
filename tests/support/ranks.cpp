#include "tests/support/ranks.h"

#include <gtest/gtest.h>

#include "runtime/core/rank_context.h"
#include "tests/support/watchdog.h"

namespace rz::test {

namespace {
// Below the watchdog's limit, so that a collective that hangs is named by its own error first.
constexpr double kTestDeadlineSeconds = 30;
}  // namespace

std::vector<std::string> errors_on_ranks(int ranks, const comm::LaunchOptions& options,
                                         const std::function<void(comm::Communicator&)>& body, std::shared_ptr<comm::ThreadHub> hub) {
  now_doing(fmt::format("a body on {} ranks as threads", ranks));
  comm::LaunchOptions bounded = options;
  if (bounded.deadline_s == 0) bounded.deadline_s = kTestDeadlineSeconds;
  std::vector<std::string> out;
  for (const std::exception_ptr& error : comm::run_thread_ranks(ranks, bounded, body, std::move(hub))) {
    out.emplace_back();
    if (error == nullptr) continue;
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      out.back() = *e.what() == '\0' ? "exception without text" : e.what();
    } catch (...) {
      out.back() = "unknown exception";
    }
  }
  return out;
}

void run_on_ranks(int ranks, const std::function<void(comm::Communicator&)>& body, const comm::LaunchOptions& options) {
  std::vector<std::shared_ptr<MemoryTracker>> trackers(static_cast<size_t>(ranks));
  const auto errors = errors_on_ranks(ranks, options, [&](comm::Communicator& comm) {
    trackers[static_cast<size_t>(comm.rank())] = RankContext::current()->shared_memory();
    body(comm);
  });
  for (size_t r = 0; r < errors.size(); ++r) {
    EXPECT_EQ(errors[r], "") << "rank " << r << " of " << ranks;
    if (trackers[r] != nullptr) {
      EXPECT_EQ(trackers[r]->current_bytes(), 0) << "rank " << r << " still holds\n" << trackers[r]->report();
    }
  }
}

}  // namespace rz::test
