#include "runtime/ops/shape.h"

#include <algorithm>
#include <numeric>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"

namespace rz::ops {

using autograd::InputGradients;
using autograd::Saved;

namespace {

// A view with autograd: `back` turns the output's gradient into a view of it with the input's shape.
template <class Back>
Tensor record_view(const char* name, const Tensor& x, Tensor view, Back back) {
  if (!autograd::needs_grad({x})) return view;
  return autograd::record(name, std::move(view), {x}, [back](const Tensor& grad, InputGradients& in) { in.add(0, back(grad)); });
}

// Adds `grad` to a part of input i's gradient; the rest of a fresh gradient is zero.
template <class Part>
void give_part(InputGradients& in, size_t i, const Tensor& grad, Part part) {
  in.into(i, [&](Tensor& out, bool accumulate) {
    auto& kernels = *backend(out.device()).elementwise;
    Tensor target = part(out);
    if (!accumulate && target.numel() != out.numel()) kernels.fill(out, 0);
    kernels.add_into(grad, target, accumulate || target.numel() != out.numel());
  });
}

}  // namespace

namespace detail {
Tensor contiguous_values(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor copy = Tensor::empty(x.shape(), x.dtype(), "contiguous");
  backend(x.device()).elementwise->copy(x, copy);
  return copy;
}
}  // namespace detail

Tensor contiguous(const Tensor& x) {
  if (x.is_contiguous()) return x;
  return record_view("contiguous", x, detail::contiguous_values(x), [](const Tensor& grad) { return grad; });
}

Tensor reshape(const Tensor& x, const Extents& extents) {
  std::vector<int64_t> full = extents.values;
  int64_t known = 1;
  int64_t* open = nullptr;
  for (int64_t& e : full) {
    if (e != -1) {
      known = checked_multiply(known, e, "reshape");
      continue;
    }
    RZ_CHECK(open == nullptr, "reshape: more than one extent of -1 in [{}]", fmt::join(extents.values, ", "));
    open = &e;
  }
  if (open != nullptr) {
    RZ_CHECK(known > 0 && x.numel() % known == 0, "reshape: {} does not divide into [{}]", x.str(), fmt::join(extents.values, ", "));
    *open = x.numel() / known;
  }
  const Shape shape(full);
  if (shape == x.shape()) return x;
  RZ_CHECK(shape.numel() == x.numel(), "cannot reshape {} to {}: {} elements against {}", x.str(), shape.str(), x.numel(), shape.numel());
  return record_view("reshape", x, detail::contiguous_values(x).view_reshape(shape),
                     [shape = x.shape()](const Tensor& grad) { return detail::contiguous_values(grad).view_reshape(shape); });
}

Tensor transpose(const Tensor& x, int dim0, int dim1) {
  return record_view("transpose", x, x.view_transpose(dim0, dim1), [=](const Tensor& grad) { return grad.view_transpose(dim0, dim1); });
}

Tensor permute(const Tensor& x, std::vector<int> order) {
  std::vector<int> inverse(order.size());
  Tensor view = x.view_permute(order);
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(x.shape().checked_dim(order[i]))] = static_cast<int>(i);
  return record_view("permute", x, std::move(view), [inverse](const Tensor& grad) { return grad.view_permute(inverse); });
}

Tensor slice(const Tensor& x, int dim, int64_t begin, int64_t end) {
  Tensor view = x.view_slice(dim, begin, end);
  if (!autograd::needs_grad({x})) return view;
  return autograd::record("slice", std::move(view), {x}, [=](const Tensor& grad, InputGradients& in) {
    give_part(in, 0, grad, [&](const Tensor& out) { return out.view_slice(dim, begin, end); });
  });
}

Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  Tensor view = x.view_broadcast(shape);
  if (!autograd::needs_grad({x})) return view;
  return autograd::record("broadcast_to", std::move(view), {x}, [](const Tensor& grad, InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) { backend(grad.device()).reduction->sum_to_shape(grad, out, accumulate); });
  });
}

Tensor squeeze(const Tensor& x, int dim) {
  const int d = x.shape().checked_dim(dim);
  RZ_CHECK(x.size(d) == 1, "squeeze: dimension {} of {} is not 1", dim, x.str());
  return reshape(x, x.shape().without(d));
}

Tensor unsqueeze(const Tensor& x, int dim) {
  const int d = dim < 0 ? dim + x.rank() + 1 : dim;
  RZ_CHECK(d >= 0 && d <= x.rank(), "unsqueeze: no place {} in {}", dim, x.str());
  std::vector<int64_t> extents(x.shape().extents().begin(), x.shape().extents().end());
  extents.insert(extents.begin() + d, 1);
  return reshape(x, extents);
}

Tensor concat(const std::vector<Tensor>& parts, int dim) {
  RZ_CHECK(!parts.empty(), "concat of no tensors");
  const int d = parts[0].shape().checked_dim(dim);
  std::vector<int64_t> ends;
  int64_t total = 0;
  for (const Tensor& part : parts) {
    RZ_CHECK(part.rank() == parts[0].rank() && part.shape().with(d, 1) == parts[0].shape().with(d, 1) && part.dtype() == parts[0].dtype(),
             "concat along dimension {}: {} does not fit {}", dim, part.str(), parts[0].str());
    ends.push_back(total += part.size(d));
  }
  Tensor y = Tensor::empty(parts[0].shape().with(d, total), parts[0].dtype(), "concat");
  const auto begin_of = [](const std::vector<int64_t>& e, size_t i) { return i == 0 ? 0 : e[i - 1]; };
  for (size_t i = 0; i < parts.size(); ++i) {
    Tensor target = y.view_slice(d, begin_of(ends, i), ends[i]);
    backend(y.device()).elementwise->copy(parts[i], target);
  }
  if (!autograd::needs_grad(parts)) return y;
  return autograd::record("concat", y, parts, [=](const Tensor& grad, InputGradients& in) {
    for (size_t i = 0; i < ends.size(); ++i)
      if (in.wants(i)) in.add(i, grad.view_slice(d, begin_of(ends, i), ends[i]));
  });
}

Tensor stack(const std::vector<Tensor>& parts, int dim) {
  std::vector<Tensor> rows;
  for (const Tensor& part : parts) rows.push_back(unsqueeze(part, dim < 0 ? dim + part.rank() + 1 : dim));
  RZ_CHECK(!rows.empty(), "stack of no tensors");
  return concat(rows, dim < 0 ? dim + rows[0].rank() : dim);
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& extents, int dim) {
  RZ_CHECK(std::accumulate(extents.begin(), extents.end(), int64_t{0}) == x.size(dim), "split: [{}] do not add up to dimension {} of {}",
           fmt::join(extents, ", "), dim, x.str());
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (const int64_t e : extents) {
    parts.push_back(slice(x, dim, begin, begin + e));
    begin += e;
  }
  return parts;
}

Tensor gather(const Tensor& x, int dim, const Tensor& index) {
  const int d = x.shape().checked_dim(dim);
  Tensor y = Tensor::empty(index.shape(), x.dtype(), "gather");
  backend(x.device()).elementwise->gather(x, d, index, y);
  if (!autograd::needs_grad({x})) return y;
  return autograd::record("gather", y, {x}, [d, saved = Saved(index)](const Tensor& grad, InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) {
      auto& kernels = *backend(out.device()).elementwise;
      if (!accumulate) kernels.fill(out, 0);
      kernels.scatter_add(grad, d, saved.get(), out);
    });
  });
}

Tensor cast(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = Tensor::empty(x.shape(), dtype, "cast");
  backend(x.device()).elementwise->copy(x, y);
  if (!is_floating(dtype) || !autograd::needs_grad({x})) return y;
  return autograd::record("cast", y, {x}, [](const Tensor& grad, InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) { backend(out.device()).elementwise->add_into(grad, out, accumulate); });
  });
}

Tensor detach(const Tensor& x) { return autograd::detach(x); }

}  // namespace rz::ops
