// Differentiable reductions. `dims` empty = all dimensions; negative dimensions count from the back; `keepdim` leaves extents of 1.
#pragma once

#include <utility>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::ops {

Tensor sum(const Tensor& x, std::vector<int> dims = {}, bool keepdim = false);
Tensor mean(const Tensor& x, std::vector<int> dims = {}, bool keepdim = false);
// The gradient of an extremum is shared equally by the elements that attain it.
Tensor max(const Tensor& x, std::vector<int> dims = {}, bool keepdim = false);
Tensor min(const Tensor& x, std::vector<int> dims = {}, bool keepdim = false);
// Divided by (count - correction): 1 gives the unbiased estimate, 0 the population's.
Tensor var(const Tensor& x, std::vector<int> dims = {}, bool keepdim = false, double correction = 1);
Tensor cumsum(const Tensor& x, int dim);

// No gradient: indices (i64) of the largest; values and indices of the k largest along the last dimension, largest first.
Tensor argmax(const Tensor& x, int dim, bool keepdim = false);
std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k);

}  // namespace rz::ops
