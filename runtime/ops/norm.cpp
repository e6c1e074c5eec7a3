#include "runtime/ops/norm.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

namespace {

Tensor norm(const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, bool centred) {
  RZ_CHECK(is_floating(x.dtype()) && x.rank() >= 1, "{} needs a floating-point tensor with a dimension, not {}", name, x.str());
  for (const Tensor* p : {&weight, &bias})
    RZ_CHECK(!p->defined() || (p->rank() == 1 && p->size(0) == x.size(-1)), "{}: a parameter {} does not fit the last dimension of {}",
             name, p->str(), x.str());
  NormKernels& kernels = *backend(x.device()).norm;
  const bool keeps = autograd::needs_grad({x, weight, bias});
  const Tensor rows = to_rows(x, keeps ? ambient_category() : Category::workspace);
  const DType compute = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const int64_t count = rows.size(0);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), name);
  Tensor y_rows = view_rows(y);
  Tensor mean = centred ? Tensor::empty({count}, compute, "norm statistics") : Tensor();
  Tensor rstd = Tensor::empty({count}, compute, "norm statistics");
  kernels.forward(rows, weight, bias, eps, y_rows, mean, rstd);
  if (!keeps) return y;
  const autograd::Saved saved_weight = weight.defined() ? autograd::Saved(weight) : autograd::Saved();
  return autograd::record(name, y, {x, weight, bias},
                          [&kernels, saved_x = autograd::Saved(rows), saved_weight, has_weight = weight.defined(), mean, rstd](
                              const Tensor& grad, autograd::InputGradients& in) {
                            const Tensor& kept = saved_x.get();
                            const Tensor g = to_rows(grad);
                            const Tensor w = has_weight ? saved_weight.get() : Tensor();
                            const Shape block_shape{norm_blocks(kept.size(0)), kept.size(1)};
                            const auto blocks = [&](size_t input) {
                              return in.wants(input) ? Tensor::empty(block_shape, rstd.dtype(), Category::workspace, "norm block sums")
                                                     : Tensor();
                            };
                            Tensor weight_blocks = blocks(1);
                            Tensor bias_blocks = blocks(2);
                            if (in.wants(0)) {
                              in.into(0, [&](Tensor& out, bool accumulate) {
                                Tensor dx = view_rows(out);
                                kernels.backward(g, kept, w, mean, rstd, dx, accumulate, weight_blocks, bias_blocks);
                              });
                            } else {
                              Tensor none;
                              kernels.backward(g, kept, w, mean, rstd, none, false, weight_blocks, bias_blocks);
                            }
                            in.into(1, [&](Tensor& out, bool accumulate) { kernels.add_blocks(weight_blocks, out, accumulate); });
                            in.into(2, [&](Tensor& out, bool accumulate) { kernels.add_blocks(bias_blocks, out, accumulate); });
                          });
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return norm("layer_norm", x, weight, bias, eps, true);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) { return norm("rms_norm", x, weight, Tensor(), eps, false); }

}  // namespace rz::ops
