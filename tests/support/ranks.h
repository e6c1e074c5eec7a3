// Ranks as threads for tests: run_on_ranks runs a body on N ranks of the thread transport and reports what went wrong on each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/launch.h"
#include "comm/thread_transport.h"

namespace rz::testing {

// Runs `body` once per rank, each with a RankContext of its own. A rank that ends with an exception fails the current test;
// so does memory still held by a rank at the end. Use ADD_FAILURE/EXPECT freely inside, ASSERT only where no collective follows.
void run_on_ranks(int ranks, const std::function<void(comm::Communicator&)>& body, const comm::LaunchOptions& options = {});

// The same where errors are expected: each rank's error text, empty where it ended well.
std::vector<std::string> errors_on_ranks(int ranks, const comm::LaunchOptions& options,
                                         const std::function<void(comm::Communicator&)>& body,
                                         std::shared_ptr<comm::ThreadHub> hub = nullptr);

}  // namespace rz::testing
