// What randomness inside a model is keyed by (decision D9): never a rank, never the order of calls.
#pragma once

#include <cstdint>

namespace rz::models {

struct SampleKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint64_t first_sample = 0;  // global index of the sample in row 0
};

}  // namespace rz::models
