// Starts this very program under mpirun, for commands that measure what they predict.
#pragma once

#include <string>
#include <vector>

namespace rz::tools {

// mpirun -np RANKS with this program and `arguments`, its output in the file `log`; waits for the end. Root is allowed where
// this process is root. Throws rz::Error naming the exit code and the last lines of the output unless it ends with 0, and
// ConfigError inside an mpirun or where there is none. timeout_s > 0: ended by then.
void mpirun_self(int ranks, const std::vector<std::string>& arguments, const std::string& log, double timeout_s = 0);

}  // namespace rz::tools
