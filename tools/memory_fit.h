// What fits under a limit on each rank's memory: the largest model of a family, and for a given job the changes that make it fit.
// Found by dry runs.
//
// The family: GPTs whose width and depth grow together, one block per 64 of width (as in GPT-2 small, 12 blocks of 768), width a
// multiple of 16, MLP four times as wide, heads as narrow as divides the width but at least 32. All else (context, batch,
// vocabulary, positions, optimizer, buckets) is the job's.
#pragma once

#include <optional>

#include "tools/memory_table.h"

namespace rz::tools {

// The member of the family with this width.
ringzero::Job family_member(const ringzero::Job& job, int64_t width);

struct Fit {
  int64_t stage = 0;
  int64_t width = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  ringzero::Job job;  // the member, as job_of_cell makes it
  MemoryCell cell;    // predicted, and measured where asked
};
// The largest member that a rank can train in `limit_bytes`; nothing when even the smallest does not fit.
std::optional<Fit> fit_largest(const ringzero::Job& job, int ranks, int64_t stage, int64_t steps, int64_t limit_bytes);

// "256MB", "256MiB", "1.5GB", "1000000": bytes. ConfigError for anything else.
int64_t parse_bytes(const std::string& text);

// For a job that broke its limit: a line for each single change that makes it fit (a higher stage, recomputation, more micro-batches), or for the
// least of all together. Never throws.
std::string what_would_fit(const ringzero::Job& job, int ranks, int64_t limit_bytes);

}  // namespace rz::tools
