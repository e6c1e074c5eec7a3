// Ranks as threads for tests: run_on_ranks runs a body on N ranks of the thread transport and reports what went wrong on each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/launch.h"
#include "comm/thread_transport.h"

namespace rz::test {

// Runs `body` once per rank, each with a RankContext of its own. A rank that ends with an exception fails the current test;
// so does memory still held by a rank at the end. Use ADD_FAILURE/EXPECT freely inside, ASSERT only where no collective follows.
void run_on_ranks(int ranks, const std::function<void(comm::Communicator&)>& body, const comm::LaunchOptions& options = {});

// The same where errors are expected: each rank's error text, empty where it ended well.
std::vector<std::string> errors_on_ranks(int ranks, const comm::LaunchOptions& options,
                                         const std::function<void(comm::Communicator&)>& body,
                                         std::shared_ptr<comm::ThreadHub> hub = nullptr);

// Whole training runs are swept over fewer settings under sanitizers, which are there for bad memory and races, not for bits and bytes.
#ifdef RZ_SANITIZE
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// The numbers of ranks of such a sweep. Seven have empty shards, which shows bad memory best; three show races as well as seven.
inline std::vector<int> rank_counts() {
#if defined(RZ_TSAN)
  return {3};
#elif defined(RZ_ASAN)
  return {3, 7};
#else
  return {1, 2, 3, 4, 5, 7};
#endif
}

}  // namespace rz::test
