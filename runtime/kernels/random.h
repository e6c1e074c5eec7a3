// Kernels that draw random numbers. Every number is a pure function of its key (core/random.h), so the same call gives the same
// numbers again, on any thread.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/core/tensor.h"

namespace rz {

// Which numbers: sample row s of a tensor draws from Random(seed, stream, step, first_sample + s).
struct SampleKey {
  uint64_t seed = 0;
  std::string stream;
  uint64_t step = 0;
  uint64_t first_sample = 0;
};

class RandomKernels {
 public:
  virtual ~RandomKernels() = default;

  // y = or += x / (1 - p) where the element is kept, 0 where it is dropped (with probability p). x and y are contiguous, of one
  // type; dimension 0 counts samples. Applied to a gradient with the same key it is the backward pass.
  virtual void dropout(const Tensor& x, double p, const SampleKey& key, Tensor& y, bool accumulate) = 0;

  // out = standard normal numbers: element i of sample row s is Random(...).normal(i). `out` is contiguous; dimension 0 counts samples.
  virtual void normal(const SampleKey& key, Tensor& out) = 0;
};

}  // namespace rz
