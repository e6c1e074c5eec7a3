// A simulation as text and as simulate.json.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/overlap/sweep.h"

namespace rz::tools {

struct SimulationReport {
  Prediction replayed;  // the recorded configuration itself: how far to trust the rest
  Prediction simulated;
  std::vector<Sweep> sweeps;
  std::optional<Prediction> best;  // of the simulated configuration with other buckets and prefetch
};

std::string simulation_text(const RecordedRun& recorded, const SimulationReport& report);
nlohmann::ordered_json simulation_json(const RecordedRun& recorded, const SimulationReport& report);

}  // namespace rz::tools
