#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class MatmulKernels {
 public:
  virtual ~MatmulKernels() = default;
};

}  // namespace rz
