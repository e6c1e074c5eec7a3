// The flags that name and change a job, the same on every command that takes one.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "proto/job.pb.h"

namespace rz::tools {

struct JobFlags {
  std::string path;
  std::vector<std::string> overrides;  // path.to.field=value, in the order given

  // load_job with all of them; `more` come last.
  ringzero::Job load(const std::vector<std::string>& more = {}) const;
  // Whether a flag sets `field`, as in "sharding.stage".
  bool sets(const std::string& field) const;
};

// The positional job file, --set, and the shorthands for what people vary most. `flags` must outlive the parser; `ranks_flag`:
// with --ranks for ranks as threads (planning commands have their own).
void add_job_flags(CLI::App& command, JobFlags& flags, bool job_required, bool ranks_flag);

}  // namespace rz::tools
