// Table lookup and its gradient, a scatter-add whose order of sums is fixed by positions, not by threads.
#pragma once

#include "runtime/core/tensor.h"

namespace rz {

class EmbeddingKernels {
 public:
  virtual ~EmbeddingKernels() = default;

  // y [N, D] = weight [V, D] at ids [N] (i32 or i64), all contiguous. rz::Error naming an id outside [0, V) and its position.
  virtual void forward(const Tensor& ids, const Tensor& weight, Tensor& y) = 0;
  // dweight [V, D] = or += the rows of grad [N, D] at their ids; rows of one id are summed in the order of positions, in the
  // compute type. Without accumulate every other row of dweight becomes 0.
  virtual void backward(const Tensor& ids, const Tensor& grad, Tensor& dweight, bool accumulate) = 0;
};

}  // namespace rz
