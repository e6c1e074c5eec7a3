// Replays a recorded run in another configuration, on virtual time.
//
// Each rank has a main thread that goes through the script of a step (step_script.h), computing for as long as the recorded rank
// did between the same marks, and a progress thread that runs collectives first in, first out; a collective moves when all ranks of
// its group have begun it, and takes as long as virtual_network.h says. Rank r of N' takes the times of recorded rank r mod N, with
//   forward, backward   in proportion to its share of the batch, which is the job's, whatever N'
//   optimizer, norm     in proportion to the elements that it updates, to its shard
//   progress thread     by what the rank receives (SoftwareCosts::work); it takes that from the main thread where no core is spare
// and consecutive recorded steps follow one another, so that what is published in one is waited for in the next.
#pragma once

#include "tools/overlap/recorded_run.h"

namespace rz::tools {

struct SimulationOptions {
  comm::NetworkSpec network;
  MessageCost message = {};
  // Ranks share the recorded machine's cores: when they compute with more threads than it has cores, all slow down. false: every rank
  // has its cores for itself.
  bool same_machine = false;
  // Simulated steps, 0 = as many as were recorded, but at most about so much work that it takes a second.
  int64_t steps = 0;
};

struct SimulatedRun {
  StepTiming timing;  // of the median step, as RecordedRun::timing
  double p10_step_ms = 0;  // of the steps' means over the ranks
  double p90_step_ms = 0;
  double tokens_per_s = 0;
  std::vector<std::vector<StepTiming>> ranks;  // [rank][step], the first step left out
};

// ConfigError when the network does not fit the ranks or the script is of another job than the recorded one.
SimulatedRun simulate(const RecordedRun& recorded, const StepScript& script, const SimulationOptions& options);

}  // namespace rz::tools
