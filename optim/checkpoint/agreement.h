// How ranks agree: strings of any length exchanged through collectives, and a step of local work whose failure on one rank
// becomes the same error on all. Every function is COLLECTIVE, blocks, and throws CommError when a rank is lost; waits are
// bounded by the communicator's deadline.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"

namespace rz::optim::checkpoint {

// Every rank's string, in rank order.
std::vector<std::string> gather_strings(comm::Communicator& comm, std::string_view own);

// Rank 0's string.
std::string broadcast_string(comm::Communicator& comm, std::string_view on_rank_0);

// The sentence that a local failure becomes; local work that must not throw runs through failure_of().
struct Failure {
  std::string text;        // empty: none
  bool is_config = false;  // it was a ConfigError
};
Failure failure_of(const std::function<void()>& local_work);

// If any rank's `own` is a failure: throws on every rank the same Error "<what>: rank R/N: <text>; rank ...", or ConfigError if
// all failures were ConfigErrors. Equal texts of several ranks are told once.
void agree(comm::Communicator& comm, const Failure& own, std::string_view what);

// Bytes that a rank handles between two agreements: it bounds how long the others wait for the slowest disk.
inline constexpr uint64_t kRoundBytes = uint64_t{256} << 20;

// Calls step(budget) in rounds of kRoundBytes, as many as the rank with the most bytes needs, and agrees after each: a
// failure on one rank stops all of them at the end of the same round.
void run_in_rounds(comm::Communicator& comm, uint64_t own_bytes, std::string_view what, const std::function<void(uint64_t)>& step);

}  // namespace rz::optim::checkpoint
