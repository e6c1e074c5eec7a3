#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class EmbeddingKernels {
 public:
  virtual ~EmbeddingKernels() = default;
};

}  // namespace rz
