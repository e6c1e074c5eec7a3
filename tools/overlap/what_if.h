// Questions to a recorded run: how long would a step take with other ranks, links, stages, buckets, prefetch; and what would be best.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/overlap/simulation.h"

namespace rz::tools {

// A configuration; what is not given is as recorded.
struct WhatIf {
  std::optional<int> ranks = {};
  std::optional<std::string> link = {};  // as in communication.link
  std::optional<std::string> inter_node_link = {};
  std::optional<int64_t> nodes = {};
  std::vector<std::string> overrides = {};  // of the job: "sharding.stage=2"
  bool same_machine = false;
  int64_t steps = 0;  // SimulationOptions::steps
};

struct Prediction {
  int ranks = 1;
  int64_t batch = 1;
  int64_t stage = 0;
  double bucket_mb = 0;
  int64_t prefetch = 0;
  bool overlap = true;
  comm::NetworkSpec network;
  size_t collectives = 0;  // in a step
  SimulatedRun run;
  std::vector<std::string> notes;
};

class Predictor {
 public:
  explicit Predictor(RecordedRun recorded) : recorded_(std::move(recorded)) {}

  const RecordedRun& recorded() const { return recorded_; }
  // ConfigError for a configuration that a run would refuse, or that no simulation can answer (simulation.h).
  Prediction predict(const WhatIf& what);
  // Bucket sizes worth trying, MiB, ascending: from a bucket for each tensor by powers of two to one bucket; without those that make
  // the same buckets as the size before.
  std::vector<double> bucket_candidates(const WhatIf& what);
  struct Best {
    WhatIf what;
    Prediction prediction;
  };
  // The quickest of a bucket for each unit and the candidates; and of prefetch 0, 1, 2, 4, 8, where parameters are sharded.
  Best best_bucket(const WhatIf& what);
  Best best_prefetch(const WhatIf& what);

 private:
  ringzero::Job job_of(const WhatIf& what) const;
  const StepScript& script_of(const ringzero::Job& job, int ranks);
  comm::NetworkSpec network_of(const WhatIf& what) const;

  RecordedRun recorded_;
  std::map<std::pair<std::string, int>, StepScript> scripts_;  // dry runs take longer than simulations
};

// `what` with one more override.
WhatIf with(WhatIf what, const std::string& override_text);

}  // namespace rz::tools
