// Whether a job makes sense: ranges, divisibility, choices that exclude each other. What needs the data (does the context
// fit, has the vocabulary room) is checked where the data is loaded.
//
// Thread-safe.
#pragma once

#include "proto/job.pb.h"
#include "tools/job_origins.h"

namespace rz::tools {

// ConfigError `place: field is value, what is valid` for the first thing wrong; `origins` knows the places. The defaults
// must have been filled in.
void validate_job(const ringzero::Job& job, const JobOrigins& origins);

}  // namespace rz::tools
