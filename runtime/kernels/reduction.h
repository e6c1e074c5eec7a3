#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class ReductionKernels {
 public:
  virtual ~ReductionKernels() = default;
};

}  // namespace rz
