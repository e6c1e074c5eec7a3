// CommError: what the outside world did to a collective (a peer died, stopped, left, disagreed, or a deadline passed).
// Its text is one line: `rank R/N host H op#SEQ name(kind, dtype, count): what, elapsed, peers seen or missing`.
#pragma once

#include "runtime/core/error.h"

namespace rz::comm {

class CommError : public Error {
 public:
  using Error::Error;
};

}  // namespace rz::comm
