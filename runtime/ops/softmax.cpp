#include "runtime/ops/softmax.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

namespace {

// A softmax-like op over the last dimension: forward fills y from x, backward dx from (grad, y), all as matrices of rows.
using RowForward = void (LossKernels::*)(const Tensor& x, Tensor& y);
using RowBackward = void (LossKernels::*)(const Tensor& grad, const Tensor& y, Tensor& dx, bool accumulate);

Tensor over_rows(const char* name, const Tensor& x, int dim, RowForward forward, RowBackward backward) {
  const int d = x.shape().checked_dim(dim);
  RZ_CHECK(is_floating(x.dtype()), "{} needs a floating-point tensor, not {}", name, x.str());
  LossKernels& kernels = *rz::backend(x.device()).loss;
  const bool last = d == x.rank() - 1;
  const Tensor rows = to_rows(last ? x : x.view_transpose(d, -1));
  Tensor y = Tensor::empty(last ? x.shape() : x.view_transpose(d, -1).shape(), x.dtype(), name);
  Tensor y_rows = view_rows(y);
  (kernels.*forward)(rows, y_rows);
  Tensor result = last ? y : y.view_transpose(d, -1);
  if (!autograd::needs_grad({x})) return result;
  return autograd::record(name, result, {x},
                          [&kernels, backward, d, last, saved = autograd::Saved(y)](const Tensor& grad, autograd::InputGradients& in) {
                            const Tensor y_saved = view_rows(saved.get());
                            const Tensor g = to_rows(last ? grad : grad.view_transpose(d, -1));
                            if (last) {
                              in.into(0, [&](Tensor& out, bool accumulate) {
                                Tensor rows_out = view_rows(out);
                                (kernels.*backward)(g, y_saved, rows_out, accumulate);
                              });
                              return;
                            }
                            if (!in.wants(0)) return;
                            Tensor dx = Tensor::empty(saved.get().shape(), grad.dtype(), "softmax gradient");
                            Tensor rows_out = view_rows(dx);
                            (kernels.*backward)(g, y_saved, rows_out, false);
                            in.add(0, dx.view_transpose(d, -1));
                          });
}

}  // namespace

Tensor softmax(const Tensor& x, int dim) { return over_rows("softmax", x, dim, &LossKernels::softmax, &LossKernels::softmax_backward); }

Tensor log_softmax(const Tensor& x, int dim) {
  return over_rows("log_softmax", x, dim, &LossKernels::log_softmax, &LossKernels::log_softmax_backward);
}

Tensor logsumexp(const Tensor& x, int dim) {
  const int d = x.shape().checked_dim(dim);
  RZ_CHECK(is_floating(x.dtype()), "logsumexp needs a floating-point tensor, not {}", x.str());
  LossKernels& kernels = *backend(x.device()).loss;
  const bool last = d == x.rank() - 1;
  const Tensor turned = last ? x : x.view_transpose(d, -1);
  const bool keeps = autograd::needs_grad({x});
  // What backward keeps is no workspace.
  const Tensor dense = to_dense(turned, keeps ? ambient_category() : Category::workspace);
  const Tensor rows = view_rows(dense);
  Tensor y = Tensor::empty({rows.size(0)}, x.dtype(), "logsumexp");
  kernels.logsumexp(rows, y);
  // Transposing moved the last dimension to position d of what is left: move it back to the end.
  const Shape reduced = turned.shape().without(-1);
  Tensor result = y.view_reshape(reduced);
  std::array<int, Shape::kMaxRank> order{};
  std::array<int, Shape::kMaxRank> inverse{};
  if (!last) {
    int at = 0;
    for (int i = 0; i < reduced.rank(); ++i)
      if (i != d) order[static_cast<size_t>(at++)] = i;
    order[static_cast<size_t>(at)] = d;
    for (int i = 0; i < reduced.rank(); ++i) inverse[static_cast<size_t>(order[static_cast<size_t>(i)])] = i;
    result = result.view_permute(std::span<const int>(order.data(), static_cast<size_t>(reduced.rank())));
  }
  if (!keeps) return result;
  return autograd::record("logsumexp", result, {x},
                          [&kernels, d, last, inverse, saved_x = autograd::Saved(dense), saved_y = autograd::Saved(y)](
                              const Tensor& grad, autograd::InputGradients& in) {
                            const Tensor turned_grad = to_dense(
                                last ? grad : grad.view_permute(std::span<const int>(inverse.data(), static_cast<size_t>(grad.rank()))));
                            const Tensor g = turned_grad.view_reshape({turned_grad.numel()});
                            const Tensor& kept = saved_x.get();
                            if (last) {
                              in.into(0, [&](Tensor& out, bool accumulate) {
                                Tensor rows_out = view_rows(out);
                                kernels.logsumexp_backward(g, view_rows(kept), saved_y.get(), rows_out, accumulate);
                              });
                              return;
                            }
                            if (!in.wants(0)) return;
                            Tensor dx = Tensor::empty(kept.shape(), kept.dtype(), "logsumexp gradient");
                            Tensor rows_out = view_rows(dx);
                            kernels.logsumexp_backward(g, view_rows(kept), saved_y.get(), rows_out, false);
                            in.add(0, dx.view_transpose(d, -1));
                          });
}

}  // namespace rz::ops
