#include "runtime/ops/dropout.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

Tensor dropout(const Tensor& x, double p, const DropoutKey& key, bool train) {
  RZ_CHECK(p >= 0 && p < 1, "dropout: the probability {} is not in [0, 1)", p);
  RZ_CHECK(is_floating(x.dtype()), "dropout needs a floating-point tensor, not {}", x.str());
  if (!train || p == 0) return x;
  RandomKernels& kernels = *backend(x.device()).random;
  const SampleKey sample_key{key.seed, "dropout:" + key.place, key.step, key.first_sample};
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "dropout");
  kernels.dropout(to_dense(x), p, sample_key, y, false);
  if (!autograd::needs_grad({x})) return y;
  return autograd::record("dropout", y, {x}, [&kernels, p, sample_key](const Tensor& grad, autograd::InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) { kernels.dropout(to_dense(grad), p, sample_key, out, accumulate); });
  });
}

}  // namespace rz::ops
