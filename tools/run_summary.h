// What a run says of every rank at its end: memory by category and phase, bytes on the wire.
#pragma once

#include <nlohmann/json.hpp>

#include "optim/shard/sharded_model.h"

namespace rz::tools {

// Adds `parameters`, `padded_parameters`, `peak_bytes` (of the fullest rank) and `per_rank[]` with each rank's memory and wire
// figures. `steps` = steps of this run, for figures per step. COLLECTIVE.
void add_rank_summaries(nlohmann::ordered_json& summary, const optim::ShardedModel& model, comm::Communicator& comm, int64_t steps);

}  // namespace rz::tools
