// `--set path.to.field=value`: one value of a job changed by name, through reflection.
//
// Any field of the schema can be set; nothing is registered here. Ranges are the business of job_validation.h. Thread-safe for different
// jobs.
#pragma once

#include <string>

#include "proto/job.pb.h"
#include "tools/job_origins.h"

namespace rz::tools {

// Applies `text`, "path.to.field=value". Enums by name in any case, strings as they stand, messages as `{field: value}`, which
// replace what was there; a field below a oneof's arm selects the arm. ConfigError `--set path=value: what, valid choices`.
void apply_override(ringzero::Job& job, const std::string& text, JobOrigins& origins);

}  // namespace rz::tools
