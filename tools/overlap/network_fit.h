// Fits the two numbers of a straight line through the collectives of a run: what a message costs and what a byte costs. In time beside
// links that are known (MessageCost), in time as the links themselves (FittedNetwork), or in work of the progress threads.
#pragma once

#include <vector>

#include "tools/overlap/recorded_run.h"

namespace rz::tools {

// One collective on all ranks of its group, by member.
struct RecordedCollective {
  ScriptOperation operation;
  int first = 0;  // member
  std::vector<int64_t> begin_ns;
  std::vector<int64_t> done_ns;
  std::vector<int64_t> cpu_ns;

  int64_t duration_ns() const;  // from the last begin to the last end
};

// Those of which every rank kept its part, in the order of their beginnings.
std::vector<RecordedCollective> collectives_of(const RunTrace& trace);

// Median of |simulated - recorded| / recorded duration.
double network_error(const std::vector<RecordedCollective>& collectives, const comm::NetworkSpec& network, int ranks, MessageCost cost);

// The costs with the least mean |log(simulated / recorded)| beside known links.
MessageCost fit_message_cost(const std::vector<RecordedCollective>& collectives, const comm::NetworkSpec& network, int ranks);

// The least squares of what collectives took of a core, by member. Zero where none were recorded.
MessageCost fit_work(const std::vector<RecordedCollective>& collectives);

// The link with the least mean |log(simulated / recorded)|, the same between all ranks.
FittedNetwork fit_link(const std::vector<RecordedCollective>& collectives, int ranks);

}  // namespace rz::tools
