// The traces of all ranks of a run on one clock, step by step.
#pragma once

#include <string>
#include <vector>

#include "tools/overlap/trace_file.h"

namespace rz::tools {

struct RunTrace {
  std::vector<RankTrace> ranks;  // by rank; all times are rank 0's clock
  std::vector<int64_t> steps;    // that every rank kept, ascending

  int size() const { return static_cast<int>(ranks.size()); }
  // The step number `step` of a rank.
  const trace::Step& at(int rank, int64_t step) const;
  const std::string& name(int rank, uint32_t name) const { return ranks[static_cast<size_t>(rank)].names[name]; }
};

// What the main thread did, without its waits.
struct Stretch {
  trace::Activity activity = trace::Activity::other;
  uint32_t name = trace::kNoName;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
};
// In order of time; together with the step's waits they fill it.
std::vector<Stretch> stretches_of(const trace::Step& step);

// The traces of all ranks, in their order. ConfigError when they are not of one run; `name` is its folder, or what stands for it.
RunTrace join_traces(std::vector<RankTrace> ranks, const std::string& name);

// Reads all traces below `run_path`. ConfigError when one is missing or damaged, or when they are not of one run.
RunTrace read_run_trace(const std::string& run_path);

}  // namespace rz::tools
