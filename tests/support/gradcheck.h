// Checks gradients against central differences in float64.
//
// The function under test maps tensors to one tensor. Its output is projected onto fixed pseudo-random weights, so that one
// backward gives the gradient of a scalar with respect to every input element, and each element is then perturbed in turn.
// Backward runs twice into the same leaves: a kernel that overwrites where it should accumulate is caught as well.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::test {

using TensorFunction = std::function<Tensor(const std::vector<Tensor>&)>;

struct GradcheckOptions {
  std::string name = "function";  // named in failures
  double step = 1e-5;             // of the central difference, times max(1, |x|)
  double tolerance = 1e-6;        // |analytic - numeric| <= tolerance * max(1, |analytic|, |numeric|)
  uint64_t seed = 1;              // of the projection
};

// One line per mismatch (the first few), naming function, input, index and both values; empty when all agree.
// Floating-point inputs must be f64 and are copied into fresh leaves; other inputs (indices, masks) are passed as they are.
std::vector<std::string> gradient_mismatches(const TensorFunction& f, const std::vector<Tensor>& inputs,
                                             const GradcheckOptions& options = {});

// Fails the running test for each mismatch.
void expect_gradients_match(const TensorFunction& f, std::vector<Tensor> inputs, GradcheckOptions options = {});

// Pseudo-random f64 (or other) tensor, uniform in [low, high); the same for the same seed and shape.
Tensor random_tensor(Shape shape, uint64_t seed, double low = -1, double high = 1, DType dtype = DType::f64);

// A contiguous copy with the same element type; reads any strides.
Tensor contiguous_copy(const Tensor& t);
// The elements in row-major order as doubles; reads any strides and types.
std::vector<double> values_of(const Tensor& t);

}  // namespace rz::test
