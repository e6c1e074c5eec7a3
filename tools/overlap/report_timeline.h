// The timeline of one step as HTML: for each rank a lane of its main thread (compute by activity and unit, waits by cause) and one of
// its collectives, with arrows from the gradients that are ready to the reduction to the wait. It zooms without scripts.
#pragma once

#include <string>

#include "tools/overlap/account.h"
#include "tools/overlap/run_trace.h"

namespace rz::tools {

// Ranks that a page shows: the first and the critical one.
inline constexpr int kRanksShown = 16;
std::vector<int> ranks_shown(const RunAccount& account);

// `index` of account.steps.
std::string timeline_html(const RunTrace& run, const RunAccount& account, size_t index);

// "1.234 ms"
std::string format_ms(double ms);

// A legend's entries, for the classes in use: their colours are in the page's style.
std::string legend_html(const std::vector<std::string>& classes);

}  // namespace rz::tools
