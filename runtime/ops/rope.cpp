#include "runtime/ops/rope.h"

#include <cmath>

#include "runtime/autograd/node.h"
#include "runtime/kernels/attention.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

RopeTable make_rope_table(int64_t positions, int64_t head_dim, double base, DType dtype, Category category) {
  RZ_CHECK(positions >= 0 && head_dim > 0 && head_dim % 2 == 0 && base > 0,
           "rope: {} positions, head width {} (must be even) and base {} make no table", positions, head_dim, base);
  RZ_CHECK(dtype == DType::f32 || dtype == DType::f64, "rope: a table is f32 or f64, not {}", name(dtype));
  RopeTable table{Tensor::empty({positions, head_dim}, dtype, category, "rope table")};
  if (dry_run()) return table;
  const int64_t half = head_dim / 2;
  const auto fill = [&](auto* out) {
    using C = std::remove_pointer_t<decltype(out)>;
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      for (int64_t t = 0; t < positions; ++t) {
        const double angle = static_cast<double>(t) * frequency;
        out[t * head_dim + i] = static_cast<C>(std::cos(angle));
        out[t * head_dim + half + i] = static_cast<C>(std::sin(angle));
      }
    }
  };
  if (dtype == DType::f32)
    fill(table.values.data<float>());
  else
    fill(table.values.data<double>());
  return table;
}

Tensor rope(const Tensor& x, const RopeTable& table, int64_t offset) {
  RZ_CHECK(x.rank() == 4, "rope: x must be [B, T, H, D], not {}", x.str());
  AttentionKernels& kernels = *backend(x.device()).attention;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "rope");
  kernels.rope(x.stride(-1) == 1 ? x : to_dense(x), table.values, offset, false, y, false);
  if (!autograd::needs_grad({x})) return y;
  return autograd::record("rope", y, {x},
                          [&kernels, saved = autograd::Saved(table.values), offset](const Tensor& grad, autograd::InputGradients& in) {
                            in.into(0, [&](Tensor& out, bool accumulate) {
                              kernels.rope(grad.stride(-1) == 1 ? grad : to_dense(grad), saved.get(), offset, true, out, accumulate);
                            });
                          });
}

}  // namespace rz::ops
