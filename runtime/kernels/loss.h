#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class LossKernels {
 public:
  virtual ~LossKernels() = default;
};

}  // namespace rz
