// The Chrome trace-event format, as ui.perfetto.dev and chrome://tracing open it: ranks are processes; compute, waits and
// communication are threads; arrows lead from a bucket whose gradients are ready to its reduction and to the wait that needs it; the
// ledger's categories are counters.
#pragma once

#include <nlohmann/json.hpp>

#include "tools/overlap/run_trace.h"

namespace rz::tools {

nlohmann::ordered_json perfetto_json(const RunTrace& run);

}  // namespace rz::tools
