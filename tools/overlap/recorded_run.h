// What a simulation takes from a recorded run: how long each rank computed between marks (step_script.h) in each kept step, and what
// its collectives cost beside the time on their links.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/link_model.h"
#include "proto/job.pb.h"
#include "tools/overlap/run_trace.h"
#include "tools/overlap/step_script.h"
#include "tools/overlap/virtual_network.h"

namespace rz::tools {

// Times of a step of one rank, or means over ranks.
struct StepTiming {
  double step_ms = 0;
  double compute_ms = 0;        // forward, backward, optimizer, without waits
  double exposed_ms = 0;        // the main thread waits for a collective
  double communication_ms = 0;  // transfers, from the moment when the last rank took one up
  double hidden_ms = 0;         // of these, while the main thread did not wait
  double other_ms() const { return step_ms - compute_ms - exposed_ms; }
  double hidden_fraction() const { return communication_ms > 0 ? hidden_ms / communication_ms : 1.0; }
};

// Intervals on one clock that do not overlap one another, ascending.
struct Span {
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
};
// How much of `transfer` lies within `waits`, ns.
int64_t overlap_ns(const std::vector<Span>& waits, const Span& transfer);

// [rank][step] to means over the ranks, of the step with the median step time: its parts add up.
StepTiming typical_timing(const std::vector<std::vector<StepTiming>>& by_rank);

// What a step costs beside compute and links, ns.
struct SoftwareCosts {
  double issue_ns = 0;   // issuing a collective, on the main thread
  double pickup_ns = 0;  // until an idle progress thread takes it up
  double wake_ns = 0;    // from the end of a collective until the main thread that waits for it goes on
  MessageCost message;
  MessageCost work;  // of a core, for each message that a progress thread receives
};

// Links as seen in the recorded collectives, where none were emulated.
struct FittedNetwork {
  comm::LinkSpec link;
  double error = 0;  // median of |fitted - recorded| / recorded over the collectives
  int64_t operations = 0;
};

struct RecordedStep {
  std::vector<double> intervals_ns;  // by interval of the script; without what the run's own threads took from one another
  double update_ns = 0;              // all of the optimizer's updates
  double used = 1;                   // the part of these times in which the main thread had a core: other programs had the rest
  int64_t updated_elements = 0;
  double gap_ns = 0;  // until the next step begins
};

struct RecordedRun {
  ringzero::Job job;
  int ranks = 1;
  int threads = 1;  // of each rank
  int cores = 1;    // of a machine
  bool one_machine = true;
  int ranks_per_machine = 1;                     // at the most
  StepScript script;                             // of the recorded configuration
  std::vector<std::vector<RecordedStep>> steps;  // [rank][kept step after warm-up]
  StepTiming timing;                             // of the median step
  SoftwareCosts costs;
  comm::NetworkSpec network;  // the emulated one, or as fitted
  std::optional<FittedNetwork> fitted;
  double message_error = 0;  // as FittedNetwork::error, of the recorded network with the fitted message costs

  int64_t samples_of(int rank) const;
};

// ConfigError for a run that cannot be replayed: no usable step, steps that this program would not make, exact sums in uneven rounds.
RecordedRun recorded_run(const RunTrace& trace);

}  // namespace rz::tools
