// The plan of a job: what one rank will hold and send, from a dry run of the very code that trains (Session over a dry
// communicator), in milliseconds and without the model's memory, for any number of ranks.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "optim/plan/reading.h"
#include "proto/job.pb.h"

namespace rz::tools {

inline constexpr int kMaxPlannedRanks = 1 << 20;

struct PlanOptions {
  int ranks = 1;
  int rank = 0;        // the first rank's share of the batch is never smaller than another's
  bool through = true; // also the validation and the checkpoint at the end; false: steps only
};

struct Plan {
  int ranks = 1;
  int rank = 0;
  int64_t stage = 0;
  int threads = 1;
  int64_t batch = 0;  // sequences in a step of all ranks
  int64_t parameters = 0;
  int64_t padded_parameters = 0;
  int64_t payload_bytes = 0;  // of all weights, in their type, with padding
  std::vector<optim::UnitReading> units;
  optim::MemoryReading memory;
  optim::StepTraffic traffic;      // of a step after the first
  std::vector<std::string> notes;  // what had to be assumed
  double seconds = 0;              // that planning took
};

// ConfigError for what a run would refuse too. A batch too small for the ranks is raised to one sequence for each, with a note.
Plan make_plan(const ringzero::Job& job, const PlanOptions& options);

nlohmann::ordered_json plan_json(const ringzero::Job& job, const Plan& plan);

// Decimal: "41.3 MB".
std::string format_bytes(double bytes);
// "1,234,567".
std::string format_count(int64_t value);

}  // namespace rz::tools
