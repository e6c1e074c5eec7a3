#include "runtime/ops/matmul.h"

#include <vector>

#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/shape.h"

namespace rz::ops {

using autograd::InputGradients;
using autograd::Saved;

namespace {

Shape replace_last(const Shape& shape, int drop, std::initializer_list<int64_t> last) {
  std::vector<int64_t> extents(shape.extents().begin(), shape.extents().end() - drop);
  extents.insert(extents.end(), last);
  return Shape(extents);
}

// Gives input i the product left x right, summed over the batch dimensions that broadcasting repeated.
void give_product(InputGradients& in, size_t i, const Shape& shape, const Tensor& left, bool transpose_left, const Tensor& right,
                  bool transpose_right, double alpha) {
  if (!in.wants(i)) return;
  auto& kernels = *backend(left.device()).matmul;
  MatmulOptions options{.transpose_a = transpose_left, .transpose_b = transpose_right, .accumulate = false, .alpha = alpha};
  const Shape lead = broadcast_shapes(replace_last(left.shape(), 2, {}), replace_last(right.shape(), 2, {}), "matmul");
  const Shape full_shape = replace_last(replace_last(lead, 0, {0, 0}), 2, {shape[-2], shape[-1]});
  if (full_shape == shape) {
    in.into(i, [&](Tensor& out, bool accumulate) {
      options.accumulate = accumulate;
      kernels.matmul(left, right, out, options);
    });
    return;
  }
  Tensor full = Tensor::empty(full_shape, left.dtype(), Category::workspace, "matmul gradient");
  kernels.matmul(left, right, full, options);
  in.into(i, [&](Tensor& out, bool accumulate) { backend(left.device()).reduction->sum_to_shape(full, out, accumulate); });
}

// [..., n] as [rows, n]; a view when the rows follow one another.
Tensor as_rows(const Tensor& t) {
  const int64_t n = t.size(-1);
  const Shape rows{n == 0 ? 0 : t.numel() / n, n};
  return detail::contiguous_values(t).view_reshape(rows);
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, MatmulTranspose transpose, double alpha) {
  RZ_CHECK(a.rank() >= 2 && b.rank() >= 2, "matmul needs two dimensions or more, got {} and {}", a.str(), b.str());
  const Shape lead = broadcast_shapes(replace_last(a.shape(), 2, {}), replace_last(b.shape(), 2, {}), "matmul");
  const int64_t m = a.size(transpose.a ? -1 : -2), n = b.size(transpose.b ? -2 : -1);
  Tensor y = Tensor::empty(replace_last(lead, 0, {m, n}), a.dtype(), "matmul");
  backend(a.device()).matmul->matmul(a, b, y, {.transpose_a = transpose.a, .transpose_b = transpose.b, .alpha = alpha});
  if (!autograd::needs_grad({a, b})) return y;
  const Saved saved_a = autograd::needs_grad({b}) ? Saved(a) : Saved();
  const Saved saved_b = autograd::needs_grad({a}) ? Saved(b) : Saved();
  return autograd::record("matmul", y, {a, b}, [=, shape_a = a.shape(), shape_b = b.shape()](const Tensor& grad, InputGradients& in) {
    // C = A B: dA = dC B^T, dB = A^T dC; a transposed input gets the transposed product.
    if (in.wants(0)) {
      const Tensor& kept = saved_b.get();
      if (transpose.a)
        give_product(in, 0, shape_a, kept, transpose.b, grad, true, alpha);
      else
        give_product(in, 0, shape_a, grad, false, kept, !transpose.b, alpha);
    }
    if (in.wants(1)) {
      const Tensor& kept = saved_a.get();
      if (transpose.b)
        give_product(in, 1, shape_b, grad, true, kept, transpose.a, alpha);
      else
        give_product(in, 1, shape_b, kept, !transpose.a, grad, false, alpha);
    }
  });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  RZ_CHECK(x.rank() >= 1 && weight.rank() == 2 && x.size(-1) == weight.size(1),
           "linear: an input of {} does not fit a weight of {} [out, in]", x.str(), weight.str());
  RZ_CHECK(!bias.defined() || bias.shape() == Shape{weight.size(0)}, "linear: a bias of {} does not fit a weight of {} [out, in]",
           bias.str(), weight.str());
  const int64_t out_features = weight.size(0);
  // Rows of a strided x are copied together once: forward and the weight's gradient both read them.
  const Tensor rows = as_rows(x);
  Tensor y = Tensor::empty(replace_last(x.shape(), 1, {out_features}), x.dtype(), "linear");
  Tensor y_rows = y.view_reshape({rows.size(0), out_features});
  backend(x.device()).matmul->matmul(rows, weight, y_rows, {.transpose_b = true, .bias = bias});
  if (!autograd::needs_grad({x, weight, bias})) return y;
  const Saved saved_rows = autograd::needs_grad({weight}) ? Saved(rows) : Saved();
  const Saved saved_weight = autograd::needs_grad({x}) ? Saved(weight) : Saved();
  return autograd::record("linear", y, {x, weight, bias}, [=](const Tensor& grad, InputGradients& in) {
    const auto& kernels = backend(grad.device());
    const Tensor grad_rows = as_rows(grad);
    in.into(0, [&](Tensor& out, bool accumulate) {
      Tensor out_rows = out.view_reshape({grad_rows.size(0), out.size(-1)});
      kernels.matmul->matmul(grad_rows, saved_weight.get(), out_rows, {.accumulate = accumulate});
    });
    in.into(1, [&](Tensor& out, bool accumulate) {
      kernels.matmul->matmul(grad_rows, saved_rows.get(), out, {.transpose_a = true, .accumulate = accumulate});
    });
    if (in.wants(2)) in.into(2, [&](Tensor& out, bool accumulate) { kernels.reduction->sum_to_shape(grad_rows, out, accumulate); });
  });
}

}  // namespace rz::ops
