// Tiled attention and rotary embedding. Equations, masks and conventions are in ops/attention.h and ops/rope.h.
//
// Tensors may be strided views with a contiguous last dimension; outputs and gradients too, so that they can be slices of one
// buffer. Workspace is linear in S and in the number of threads, and taken once per call. The same bits for any number of threads.
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

struct AttentionCall {
  bool causal = false;
  double scale = 1;         // multiplies q k^T
  Tensor rope;              // [positions, D] as in ops/rope.h: queries and keys are rotated as they are read; undefined: they are not
  int64_t rope_offset = 0;  // position of token 0 of queries and keys (S == T with rope)
};

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;

  // q, out [B, H, T, D]; k, v [B, Hkv, S, D]. lse [B, H, T], contiguous, of the compute type; undefined when not needed.
  virtual void forward(const AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out, Tensor& lse) = 0;
  // dq, dk, dv: of the shapes of q, k, v; overwritten, or added to when accumulate.
  virtual void backward(const AttentionCall& call, const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& out, const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv, bool accumulate) = 0;

  // y = or += x [B, T, H, D] rotated by the angles of positions offset + t, or back by them when `inverse`.
  virtual void rope(const Tensor& x, const Tensor& table, int64_t offset, bool inverse, Tensor& y, bool accumulate) = 0;
};

}  // namespace rz
