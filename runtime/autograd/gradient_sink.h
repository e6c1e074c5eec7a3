// Where gradients of leaves (parameters) go. The engine asks for a destination, lets kernels add into it in place, and says
// when a leaf has had its last contribution. Data parallelism and ZeRO are sinks; so is the plain `.grad` of tests.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::autograd {

struct AutogradMeta;

// Memory for a leaf's gradient, of the leaf's shape. `accumulate` false: the first contribution overwrites what is there.
struct GradientTarget {
  Tensor tensor;
  bool accumulate = false;
};

class GradientSink {
 public:
  virtual ~GradientSink() = default;
  // Called for each contribution to `leaf`, on the thread that runs backward.
  virtual GradientTarget target(AutogradMeta& leaf) = 0;
  // Called once per backward for each reached leaf, after its last contribution; the order is the same on every rank.
  virtual void ready(AutogradMeta& leaf) = 0;
};

}  // namespace rz::autograd
