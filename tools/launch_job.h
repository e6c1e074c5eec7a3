// How a job's ranks are started.
#pragma once

#include "comm/launch.h"
#include "proto/job.pb.h"

namespace rz::tools {

// What the job says of ranks, transport, deadline, emulated links and fuzzing. Sets the allocator's poison, too.
comm::LaunchOptions launch_options(const ringzero::Job& job);

}  // namespace rz::tools
