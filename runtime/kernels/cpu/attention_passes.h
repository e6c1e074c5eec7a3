// The two passes of attention for one storage type, in files of their own because each instantiates many micro-kernels.
#pragma once

#include "runtime/kernels/cpu/attention_call.h"

namespace rz::cpu {

template <class T>
void attention_forward(const AttentionCall& call, const AttentionSizes& sizes, const Tensor& q, const Tensor& k, const Tensor& v,
                       Tensor& out, Tensor& lse);

template <class T>
void attention_backward(const AttentionCall& call, const AttentionSizes& sizes, const Tensor& grad, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv, bool accumulate);

}  // namespace rz::cpu
