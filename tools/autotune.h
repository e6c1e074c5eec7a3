// The bucket size of a job that says `bucket_mb: auto`.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "proto/job.pb.h"

namespace rz::tools {

struct TunedBucket {
  double bucket_mb = 0;
  double step_ms = 0;          // simulated, with it
  double default_step_ms = 0;  // simulated, with a bucket for each unit
  double seconds = 0;          // that the choice took
};

// Trains a few steps from the job's beginning with a bucket for each unit, records them, and simulates them with other bucket sizes
// (tools/overlap/what_if.h); rank 0 chooses, and every rank returns its choice. Leaves nothing behind: weights, states and peaks of
// memory of those steps are gone. On one rank nothing is tried: there is nothing to send. COLLECTIVE. ConfigError where the steps cannot
// be simulated, saying why.
TunedBucket tune_bucket(const ringzero::Job& job, comm::Communicator& comm);

}  // namespace rz::tools
