#include "runtime/ops/reduction.h"

#include <algorithm>
#include <numeric>

#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/shape.h"

namespace rz::ops {

using autograd::InputGradients;
using autograd::Saved;

namespace {

struct Plan {
  std::vector<int> dims;
  Shape kept;     // extents of 1 for the reduced dimensions
  Shape dropped;  // without them
  int64_t count = 1;
};

Plan plan(const Tensor& x, const std::vector<int>& dims) {
  Plan p;
  if (dims.empty()) {
    p.dims.resize(static_cast<size_t>(x.rank()));
    std::iota(p.dims.begin(), p.dims.end(), 0);
  } else {
    for (const int d : dims) p.dims.push_back(x.shape().checked_dim(d));
  }
  p.kept = x.shape();
  for (const int d : p.dims) {
    p.count *= x.size(d);
    p.kept = p.kept.with(d, 1);
  }
  std::vector<int64_t> extents;
  for (int d = 0; d < x.rank(); ++d)
    if (std::find(p.dims.begin(), p.dims.end(), d) == p.dims.end()) extents.push_back(x.size(d));
  p.dropped = Shape(extents);
  return p;
}

// The gradient of a reduction's output, repeated over what was reduced: a view with stride 0.
Tensor spread(const Tensor& grad, const Shape& kept, const Shape& full) {
  return detail::contiguous_values(grad).view_reshape(kept).view_broadcast(full);
}

Tensor scaled(const Tensor& x, double factor) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), Category::workspace, "scaled gradient");
  backend(x.device()).elementwise->unary(UnaryOp::scale, x, y, {factor, 0});
  return y;
}

Tensor reduce(const char* name, ReduceOp op, const Tensor& x, const Plan& p, bool keepdim) {
  Tensor y = Tensor::empty(keepdim ? p.kept : p.dropped, x.dtype(), name);
  backend(x.device()).reduction->reduce(op, x, p.dims, y);
  return y;
}

Tensor sum_or_mean(const char* name, ReduceOp op, const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  const Plan p = plan(x, dims);
  const Tensor y = reduce(name, op, x, p, keepdim);
  if (!autograd::needs_grad({x})) return y;
  const double factor = op == ReduceOp::mean ? 1.0 / static_cast<double>(p.count) : 1.0;
  return autograd::record(name, y, {x}, [=, kept = p.kept, full = x.shape()](const Tensor& grad, InputGradients& in) {
    in.add(0, spread(factor == 1.0 ? grad : scaled(grad, factor), kept, full));
  });
}

Tensor extremum(const char* name, ReduceOp op, const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  const Plan p = plan(x, dims);
  const Tensor y = reduce(name, op, x, p, keepdim);
  if (!autograd::needs_grad({x})) return y;
  return autograd::record(name, y, {x}, [p, saved_x = Saved(x), saved_y = Saved(y)](const Tensor& grad, InputGradients& in) {
    const auto& kernels = backend(grad.device());
    const Tensor& x = saved_x.get();
    const Tensor y = spread(saved_y.get(), p.kept, x.shape());
    Tensor attains = Tensor::empty(x.shape(), DType::u8, Category::workspace, "extremum mask");
    kernels.elementwise->compare(CompareOp::eq, x, y, attains);
    // Each gets grad / (number of elements that attain the extremum).
    Tensor ones = Tensor::empty(x.shape(), DType::f64, Category::workspace, "extremum mask");
    kernels.elementwise->copy(attains, ones);
    Tensor ties = Tensor::empty(p.kept, DType::f64, Category::workspace, "extremum ties");
    kernels.reduction->reduce(ReduceOp::sum, ones, p.dims, ties);
    Tensor ties_typed = Tensor::empty(p.kept, x.dtype(), Category::workspace, "extremum ties");
    kernels.elementwise->copy(ties, ties_typed);
    Tensor share = Tensor::empty(p.kept, x.dtype(), Category::workspace, "extremum share");
    kernels.elementwise->binary(BinaryOp::div, detail::contiguous_values(grad).view_reshape(p.kept), ties_typed, share);
    const Tensor zero = Tensor::full({}, 0, x.dtype(), "zero");
    in.into(0, [&](Tensor& out, bool accumulate) { kernels.elementwise->where(attains, share, zero, out, accumulate); });
  });
}

}  // namespace

Tensor sum(const Tensor& x, std::vector<int> dims, bool keepdim) { return sum_or_mean("sum", ReduceOp::sum, x, dims, keepdim); }
Tensor mean(const Tensor& x, std::vector<int> dims, bool keepdim) { return sum_or_mean("mean", ReduceOp::mean, x, dims, keepdim); }
Tensor max(const Tensor& x, std::vector<int> dims, bool keepdim) { return extremum("max", ReduceOp::max, x, dims, keepdim); }
Tensor min(const Tensor& x, std::vector<int> dims, bool keepdim) { return extremum("min", ReduceOp::min, x, dims, keepdim); }

Tensor var(const Tensor& x, std::vector<int> dims, bool keepdim, double correction) {
  const Plan p = plan(x, dims);
  RZ_CHECK(static_cast<double>(p.count) > correction, "var: {} elements and a correction of {}", p.count, correction);
  Tensor y = Tensor::empty(keepdim ? p.kept : p.dropped, x.dtype(), "var");
  const bool recorded = autograd::needs_grad({x});
  Tensor average = recorded ? Tensor::empty(y.shape(), x.dtype(), "var mean") : Tensor();
  backend(x.device()).reduction->variance(x, p.dims, correction, y, average);
  if (!recorded) return y;
  const double factor = 2.0 / (static_cast<double>(p.count) - correction);
  return autograd::record("var", y, {x},
                          [p, factor, saved_x = Saved(x), saved_mean = Saved(average)](const Tensor& grad, InputGradients& in) {
                            auto& kernels = *backend(grad.device()).elementwise;
                            const Tensor& x = saved_x.get();
                            Tensor deviation = Tensor::empty(x.shape(), x.dtype(), Category::workspace, "var deviation");
                            kernels.binary(BinaryOp::sub, x, spread(saved_mean.get(), p.kept, x.shape()), deviation);
                            Tensor gradient = Tensor::empty(x.shape(), x.dtype(), "var gradient");
                            kernels.binary(BinaryOp::mul, deviation, spread(scaled(grad, factor), p.kept, x.shape()), gradient);
                            in.add(0, gradient);
                          });
}

Tensor cumsum(const Tensor& x, int dim) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), "cumsum");
  backend(x.device()).reduction->cumulative_sum(x, dim, false, y);
  if (!autograd::needs_grad({x})) return y;
  return autograd::record("cumsum", y, {x}, [dim](const Tensor& grad, InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) { backend(grad.device()).reduction->cumulative_sum(grad, dim, true, out, accumulate); });
  });
}

Tensor argmax(const Tensor& x, int dim, bool keepdim) {
  const Plan p = plan(x, {dim});
  Tensor y = Tensor::empty(keepdim ? p.kept : p.dropped, DType::i64, "argmax");
  backend(x.device()).reduction->arg_max(x, dim, y);
  return y;
}

std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k) {
  RZ_CHECK(x.rank() >= 1 && k >= 0 && k <= x.size(-1), "topk: {} of {} cannot be taken", k, x.str());
  Tensor values = Tensor::empty(x.shape().with(-1, k), x.dtype(), "topk");
  Tensor indices = Tensor::empty(values.shape(), DType::i64, "topk");
  backend(x.device()).reduction->top_k(x, k, values, indices);
  return {values, indices};
}

}  // namespace rz::ops
