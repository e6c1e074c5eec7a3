// How the error begins of a rank that would hold more than MemoryTracker::set_limit_bytes allows; the ledger follows.
#pragma once

namespace rz {

inline constexpr const char* kMemoryLimitError = "memory limit of";

}  // namespace rz
