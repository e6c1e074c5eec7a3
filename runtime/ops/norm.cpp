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
  const DType compute = compute_dtype(x.dtype());
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

Tensor layer_norm_modulate(const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
  RZ_CHECK(is_floating(x.dtype()) && x.rank() >= 2, "layer_norm_modulate needs floating-point samples [N, .., D], not {}", x.str());
  for (const Tensor* p : {&scale, &shift})
    RZ_CHECK(p->shape() == (Shape{x.size(0), x.size(-1)}) && p->dtype() == x.dtype(), "layer_norm_modulate: a parameter {} does not fit {}",
             p->str(), x.str());
  const auto& kernels = backend(x.device());
  const bool keeps = autograd::needs_grad({x, scale, shift});
  const Tensor rows = to_rows(x, keeps ? ambient_category() : Category::workspace);
  const DType compute = compute_dtype(x.dtype());
  // 1 + scale in the compute type: in 16 bits a small scale would be lost.
  Tensor wide = scale;
  if (scale.dtype() != compute) {
    wide = Tensor::empty(scale.shape(), compute, Category::workspace, "norm gain");
    kernels.elementwise->copy(scale, wide);
  }
  Tensor gain = Tensor::empty(scale.shape(), compute, "norm gain");
  kernels.elementwise->unary(UnaryOp::shift, wide, gain, {.p0 = 1});
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "layer_norm_modulate");
  Tensor y_rows = view_rows(y);
  Tensor mean = Tensor::empty({rows.size(0)}, compute, "norm statistics");
  Tensor rstd = Tensor::empty({rows.size(0)}, compute, "norm statistics");
  kernels.norm->forward(rows, gain, to_dense(shift), eps, y_rows, mean, rstd);
  if (!keeps) return y;
  return autograd::record(
      "layer_norm_modulate", y, {x, scale, shift},
      [&kernels, saved_x = autograd::Saved(rows), gain, mean, rstd](const Tensor& grad, autograd::InputGradients& in) {
        const Tensor g = to_rows(grad);
        Tensor dscale = in.wants(1) ? Tensor::empty(gain.shape(), rstd.dtype(), Category::workspace, "norm gradient") : Tensor();
        Tensor dshift = in.wants(2) ? Tensor::empty(gain.shape(), rstd.dtype(), Category::workspace, "norm gradient") : Tensor();
        Tensor none;
        if (in.wants(0))
          in.into(0, [&](Tensor& out, bool accumulate) {
            Tensor dx = view_rows(out);
            kernels.norm->backward(g, saved_x.get(), gain, mean, rstd, dx, accumulate, dscale, dshift);
          });
        else
          kernels.norm->backward(g, saved_x.get(), gain, mean, rstd, none, false, dscale, dshift);
        in.into(1, [&](Tensor& out, bool accumulate) { kernels.elementwise->add_into(dscale, out, accumulate); });
        in.into(2, [&](Tensor& out, bool accumulate) { kernels.elementwise->add_into(dshift, out, accumulate); });
      });
}

Tensor add_gated(const Tensor& x, const Tensor& h, const Tensor& gate) {
  RZ_CHECK(is_floating(x.dtype()) && x.rank() >= 2 && h.shape() == x.shape() && h.dtype() == x.dtype(),
           "add_gated needs two floating-point tensors [N, .., D] of one shape and type, not {} and {}", x.str(), h.str());
  RZ_CHECK(gate.shape() == (Shape{x.size(0), x.size(-1)}) && gate.dtype() == x.dtype(), "add_gated: a gate {} does not fit {}", gate.str(),
           x.str());
  const auto& kernels = backend(x.device());
  const bool keeps = autograd::needs_grad({gate});
  const Tensor rows = to_rows(h, keeps ? ambient_category() : Category::workspace);
  // A copy of a part: a view would keep the other parts of a modulation.
  const bool keeps_gate = autograd::needs_grad({h});
  const Tensor dense_gate = to_dense(gate, keeps_gate ? ambient_category() : Category::workspace);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "add_gated");
  Tensor y_rows = view_rows(y);
  kernels.norm->add_gated(to_rows(x), rows, dense_gate, y_rows);
  if (!autograd::needs_grad({x, h, gate})) return y;
  const autograd::Saved saved_h = keeps ? autograd::Saved(rows) : autograd::Saved();
  const autograd::Saved saved_gate = keeps_gate ? autograd::Saved(dense_gate) : autograd::Saved();
  return autograd::record("add_gated", y, {x, h, gate}, [&kernels, saved_h, saved_gate](const Tensor& grad, autograd::InputGradients& in) {
    if (in.wants(0)) in.add(0, grad);
    const Tensor g = to_rows(grad);
    const Tensor kept_h = in.wants(2) ? saved_h.get() : Tensor();
    const Tensor kept_gate = in.wants(1) ? saved_gate.get() : Tensor();
    const Shape shape{grad.size(0), grad.size(-1)};
    const DType compute = compute_dtype(grad.dtype());
    Tensor dgate = in.wants(2) ? Tensor::empty(shape, compute, Category::workspace, "gate gradient") : Tensor();
    Tensor none;
    if (in.wants(1))
      in.into(1, [&](Tensor& out, bool accumulate) {
        Tensor dh = view_rows(out);
        kernels.norm->gate_backward(g, kept_h, kept_gate, dh, accumulate, dgate);
      });
    else if (in.wants(2))
      kernels.norm->gate_backward(g, kept_h, kept_gate, none, false, dgate);
    in.into(2, [&](Tensor& out, bool accumulate) { kernels.elementwise->add_into(dgate, out, accumulate); });
  });
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) { return norm("rms_norm", x, weight, Tensor(), eps, false); }

}  // namespace rz::ops
