// What slow ranks cost: the recorded run is replayed with them as fast as the usual rank.
#pragma once

#include "tools/overlap/account.h"
#include "tools/overlap/recorded_run.h"

namespace rz::tools {

// How much shorter a step would be had `slow` taken the times of `usual`, both simulated on the recorded links; never below 0.
double saved_by_usual_speed(const RecordedRun& recorded, const Stragglers& stragglers);

// Fills saved_ms or, for a run that cannot be replayed, not_simulated. Replays nothing where no rank is slow.
void simulate_usual_speed(const RunTrace& trace, Stragglers& stragglers);

}  // namespace rz::tools
