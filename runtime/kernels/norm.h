// Layer norm and RMS norm over rows, and the gated residual of conditioned blocks: x, y, grad and dx are contiguous [N, D] of one type; equations in ops/norm.h.
//
// Gradients of weight and bias come in two steps: backward adds up each of norm_blocks(N) fixed blocks of rows while it makes dx,
// in one pass over grad and x; add_blocks sums the blocks in order. The same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

// Number of row blocks whose sums backward keeps apart: enough to occupy many threads, few enough to stay in cache.
inline int64_t norm_blocks(int64_t rows) { return std::clamp<int64_t>(rows / 16, 1, 64); }

class NormKernels {
 public:
  virtual ~NormKernels() = default;

  // weight, bias: [D], of x's type or f32, or undefined; or [S, D] with S a divisor of N: the first N / S rows take the first row of
  // them, and so on. mean, rstd: [N] of x's compute type; for an RMS norm `mean` is undefined
  // (nothing is subtracted) and rstd is the inverse root mean square.
  virtual void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, Tensor& y, Tensor& mean, Tensor& rstd) = 0;

  // dx may be undefined when nobody wants it; weight_blocks and bias_blocks too, else they are [norm_blocks(N), D] of x's compute
  // type and are overwritten; with a weight of [S, D] they are [S, D] and thereby the gradients themselves.
  virtual void backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& rstd, Tensor& dx,
                        bool accumulate, Tensor& weight_blocks, Tensor& bias_blocks) = 0;

  // out [D] = or += the sum of the rows of blocks, in order.
  virtual void add_blocks(const Tensor& blocks, Tensor& out, bool accumulate) = 0;

  // y = x + h gate for rows [N, D] and a gate of [S, D], of x's type, whose rows each serve N / S rows.
  virtual void add_gated(const Tensor& x, const Tensor& h, const Tensor& gate, Tensor& y) = 0;

  // dh = or += grad gate; dgate [S, D], of h's compute type, = the sums of grad h over the rows of each sample, in order. One of them may be
  // undefined.
  virtual void gate_backward(const Tensor& grad, const Tensor& h, const Tensor& gate, Tensor& dh, bool accumulate, Tensor& dgate) = 0;
};

}  // namespace rz
