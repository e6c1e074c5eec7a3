#include "tools/overlap/stragglers.h"

#include <algorithm>

#include "runtime/core/error.h"
#include "tools/overlap/simulation.h"

namespace rz::tools {

double saved_by_usual_speed(const RecordedRun& recorded, const Stragglers& stragglers) {
  const SimulationOptions options{
      .network = recorded.network, .message = recorded.costs.message, .same_machine = recorded.one_machine, .steps = 0};
  RecordedRun even = recorded;
  for (const Stragglers::Slow& slow : stragglers.ranks)
    even.steps[static_cast<size_t>(slow.rank)] = recorded.steps[static_cast<size_t>(stragglers.usual_rank)];
  return std::max(0.0, simulate(recorded, recorded.script, options).timing.step_ms - simulate(even, even.script, options).timing.step_ms);
}

void simulate_usual_speed(const RunTrace& trace, Stragglers& stragglers) {
  if (stragglers.ranks.empty()) return;
  try {
    stragglers.saved_ms = saved_by_usual_speed(recorded_run(trace), stragglers);
  } catch (const ConfigError& e) {
    stragglers.not_simulated = e.what();
  }
}

}  // namespace rz::tools
