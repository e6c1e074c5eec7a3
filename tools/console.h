// Who prints: before ranks can talk to each other, one process of a job speaks for all.
#pragma once

namespace rz::tools {

// True in a process that was not started by mpirun, and in rank 0 of one that was.
bool is_speaker();

// Ranks that mpirun started on this machine; 1 without it.
int ranks_on_this_machine();

}  // namespace rz::tools
