// A training run: from a checked job to a run directory. One call per rank.
//
// Data flow of a step: samples of this rank -> task (model, single device) -> loss -> ShardedModel (backward, reductions)
// -> ShardedOptimizer -> weights; metrics go to rank 0's run directory.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "proto/job.pb.h"

namespace rz::tools {

struct TrainOptions {
  std::string out;      // run directory; empty: runs/<job name>
  bool resume = false;  // go on from the newest whole checkpoint in it
  bool json = false;    // print the summary as JSON instead of progress
};

// COLLECTIVE. Throws on every rank: ConfigError for bad input, before the first step and before anything is written.
void train(const ringzero::Job& job, const TrainOptions& options, comm::Communicator& comm);

}  // namespace rz::tools
