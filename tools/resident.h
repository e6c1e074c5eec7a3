// The process's own resident memory as the kernel counts it: the outside witness beside the ledger.
#pragma once

#include <cstdint>

namespace rz::tools {

// VmRSS and VmHWM of /proc/self/status; 0 where there is none. Of the whole process: with ranks as threads, of all of them.
int64_t resident_bytes();
int64_t peak_resident_bytes();

}  // namespace rz::tools
