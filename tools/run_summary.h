// What a run says of every rank at its end: memory by category and phase, bytes on the wire.
#pragma once

#include <nlohmann/json.hpp>

#include "optim/plan/reading.h"
#include "tools/session.h"

namespace rz::tools {

// {"parameter": bytes, ...}
nlohmann::ordered_json by_category(const CategoryBytes& bytes);
// A ledger's reading as summary.json holds it: peaks by category and phase, persistent states.
nlohmann::ordered_json memory_json(const optim::MemoryReading& memory);

// Adds `parameters`, `padded_parameters`, `peak_bytes` (of the fullest rank) and `per_rank[]` with each rank's memory and wire
// figures; `baseline_bytes` is this process's resident memory before the run. COLLECTIVE.
void add_rank_summaries(nlohmann::ordered_json& summary, Session& session, comm::Communicator& comm, int64_t baseline_bytes);

}  // namespace rz::tools
