// Dropout (Srivastava et al., JMLR 2014), inverted: kept elements are divided by 1 - p, so that evaluation needs no scaling.
//
// The mask is a pure function of (seed, place, step, global sample index, element): it does not depend on how samples are spread
// over ranks or micro-batches, is never stored, and is computed again in backward.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/core/tensor.h"

namespace rz::ops {

struct DropoutKey {
  uint64_t seed = 0;
  std::string place;          // which dropout of the model this is: "blocks.3.mlp"
  uint64_t step = 0;
  uint64_t first_sample = 0;  // global index of the sample in row 0 of x
};

// Dimension 0 of x counts samples. Each element is dropped with probability p in [0, 1). Without `train`, or with p = 0, x itself.
Tensor dropout(const Tensor& x, double p, const DropoutKey& key, bool train);

}  // namespace rz::ops
