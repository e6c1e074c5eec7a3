// Differentiable changes of shape and layout. What can be a view is one: reshape of a contiguous tensor, transpose, permute, slice,
// broadcast_to and split copy nothing. Negative dimensions count from the back.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::ops {

// What reshape takes: a shape in which one extent may be -1, meaning what remains.
struct Extents {
  std::vector<int64_t> values;
  Extents(std::initializer_list<int64_t> extents) : values(extents) {}
  Extents(std::vector<int64_t> extents) : values(std::move(extents)) {}
  Extents(const Shape& shape) : values(shape.extents().begin(), shape.extents().end()) {}
};
// Copies when x is not contiguous.
Tensor reshape(const Tensor& x, const Extents& extents);
Tensor transpose(const Tensor& x, int dim0, int dim1);
Tensor permute(const Tensor& x, std::vector<int> order);
// Elements [begin, end) along `dim`.
Tensor slice(const Tensor& x, int dim, int64_t begin, int64_t end);
Tensor broadcast_to(const Tensor& x, const Shape& shape);
// Removes a dimension of extent 1, or inserts one before `dim` (0 .. rank).
Tensor squeeze(const Tensor& x, int dim);
Tensor unsqueeze(const Tensor& x, int dim);

Tensor concat(const std::vector<Tensor>& parts, int dim);
// A new dimension `dim` over equal shapes.
Tensor stack(const std::vector<Tensor>& parts, int dim);
// Views of the given extents along `dim`; they must add up.
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& extents, int dim);

// out[..., i, ...] = x[..., index[..., i, ...], ...] along `dim`; index (i32 or i64) has x's shape except along `dim`.
Tensor gather(const Tensor& x, int dim, const Tensor& index);

// x itself when it is contiguous, else a copy.
Tensor contiguous(const Tensor& x);
// x itself when it has that type; the gradient is cast back.
Tensor cast(const Tensor& x, DType dtype);
// The same elements outside the graph.
Tensor detach(const Tensor& x);

namespace detail {
// contiguous() for backward functions: records nothing.
Tensor contiguous_values(const Tensor& x);
}  // namespace detail

}  // namespace rz::ops
