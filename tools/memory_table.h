// The table stage x ranks of a job: what dry runs predict, and what mpirun then measures, side by side.
#pragma once

#include <optional>
#include <vector>

#include "tools/plan.h"

namespace rz::tools {

// One rank's figures, predicted (from a Plan) or measured (from summary.json).
struct RankMemory {
  optim::MemoryReading memory;
  double sent_bytes_per_step = 0;
  int64_t rss_growth_bytes = 0;  // measured only
};

struct MemoryCell {
  int ranks = 1;
  int64_t stage = 0;
  int64_t parameters = 0;
  int64_t padded_parameters = 0;
  std::vector<RankMemory> predicted;  // by rank; only rank 0 where nothing is measured
  std::vector<RankMemory> measured;   // empty where not measured

  // Of the fullest rank.
  const RankMemory& fullest_predicted() const;
  const RankMemory& fullest_measured() const;
  // Largest difference between measured and predicted over ranks, categories and phases, bytes.
  int64_t worst_difference_bytes() const;
};

struct MeasureOptions {
  std::string directory;  // for run directories and logs
  double timeout_s = 0;   // 0 = none
};

// The job as `memory` predicts and measures it: on `ranks` ranks in `stage`, `steps` steps, one validation forward a rank, no sample.
ringzero::Job job_of_cell(const ringzero::Job& job, int ranks, int64_t stage, int64_t steps);

MemoryCell predict_cell(const ringzero::Job& job, int ranks, bool every_rank);
// Fills in what the summary.json of a run directory says.
void read_measured(const std::string& run, MemoryCell& cell);
// Starts mpirun on this very program; throws rz::Error with the end of its output when it fails.
void measure_cell(const ringzero::Job& job, MemoryCell& cell, const MeasureOptions& options);

nlohmann::ordered_json cells_json(const ringzero::Job& job, const std::vector<MemoryCell>& cells);
std::string cells_text(const std::vector<MemoryCell>& cells);

}  // namespace rz::tools
