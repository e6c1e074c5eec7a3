#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class NormKernels {
 public:
  virtual ~NormKernels() = default;
};

}  // namespace rz
