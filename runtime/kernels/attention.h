#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;
};

}  // namespace rz
