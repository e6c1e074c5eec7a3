// The error of a rank that would hold more than MemoryTracker::set_limit_bytes allows: its text is the ledger.
#pragma once

#include "runtime/core/error.h"

namespace rz {

class MemoryLimitError : public Error {
 public:
  using Error::Error;
};

}  // namespace rz
