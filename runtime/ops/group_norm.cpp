#include "runtime/ops/group_norm.h"

#include <array>

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

Tensor group_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const GroupNormOptions& options, const Tensor& scale,
                  const Tensor& shift) {
  RZ_CHECK(is_floating(x.dtype()) && x.rank() >= 2, "group_norm needs floating-point images [N, .., C], not {}", x.str());
  RZ_CHECK(options.groups >= 1 && x.size(-1) % options.groups == 0, "group_norm: {} channels do not divide into {} groups", x.size(-1),
           options.groups);
  GroupNormKernels& kernels = *backend(x.device()).group_norm;
  const std::array<Tensor, 4> parameters{weight, bias, scale, shift};
  const bool keeps = autograd::needs_grad({x, weight, bias, scale, shift});
  const Category category = keeps ? ambient_category() : Category::workspace;
  const int64_t samples = x.size(0), channels = x.size(-1);
  const int64_t pixels = samples * channels == 0 ? 0 : x.numel() / samples / channels;
  const Tensor dense = to_dense(x, category).view_reshape({samples, pixels, channels});

  std::array<Tensor, 4> values;
  std::array<autograd::Saved, 4> saved;
  for (size_t i = 0; i < 4; ++i) {
    if (!parameters[i].defined()) continue;
    RZ_CHECK(parameters[i].dtype() == x.dtype() || (parameters[i].dtype() == DType::f32 && x.dtype() != DType::f64),
             "group_norm: a parameter {} does not fit the type of {}", parameters[i].str(), x.str());
    values[i] = to_dense(parameters[i], category);
    saved[i] = autograd::Saved(values[i]);
  }
  const DType compute = compute_dtype(x.dtype());
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "group_norm");
  Tensor y_samples = y.view_reshape(dense.shape());
  Tensor mean = Tensor::empty({samples, options.groups}, compute, "norm statistics");
  Tensor rstd = Tensor::empty({samples, options.groups}, compute, "norm statistics");
  const auto call_of = [options](const std::array<Tensor, 4>& p) {
    return GroupNormCall{options.groups, options.epsilon, options.silu, p[0], p[1], p[2], p[3]};
  };
  kernels.forward(call_of(values), dense, y_samples, mean, rstd);
  if (!keeps) return y;

  const std::array<bool, 4> has{weight.defined(), bias.defined(), scale.defined(), shift.defined()};
  return autograd::record(
      "group_norm", y, {x, weight, bias, scale, shift},
      [&kernels, call_of, has, saved, saved_x = autograd::Saved(dense), mean, rstd](const Tensor& grad, autograd::InputGradients& in) {
        std::array<Tensor, 4> p;
        for (size_t i = 0; i < 4; ++i)
          if (has[i]) p[i] = saved[i].get();
        const GroupNormCall call = call_of(p);
        const Tensor& kept = saved_x.get();
        const Tensor g = to_dense(grad).view_reshape(kept.shape());
        Tensor sums = Tensor::empty({kept.size(0), 2, kept.size(2)}, rstd.dtype(), Category::workspace, "group norm sums");
        if (in.wants(0)) {
          in.into(0, [&](Tensor& out, bool accumulate) {
            Tensor dx = out.view_reshape(kept.shape());
            kernels.backward(call, g, kept, mean, rstd, dx, accumulate, sums);
          });
        } else {
          Tensor none;
          kernels.backward(call, g, kept, mean, rstd, none, false, sums);
        }
        constexpr std::array kParameters{GroupNormParameter::weight, GroupNormParameter::bias, GroupNormParameter::scale,
                                         GroupNormParameter::shift};
        for (size_t i = 0; i < 4; ++i)
          if (in.wants(i + 1))
            in.into(i + 1, [&](Tensor& out, bool accumulate) { kernels.parameter_gradient(call, sums, kParameters[i], out, accumulate); });
      });
}

}  // namespace rz::ops
