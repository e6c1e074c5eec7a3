#include "runtime/core/tensor.h"

#include <algorithm>
#include <cstring>

namespace rz {

Tensor Tensor::make(std::shared_ptr<Storage> storage, Shape shape, Strides strides, int64_t offset, DType dtype) {
  Tensor t;
  t.impl_ = std::make_shared<Impl>();
  t.impl_->storage = std::move(storage);
  t.impl_->shape = shape;
  t.impl_->strides = strides;
  t.impl_->offset = offset;
  t.impl_->dtype = dtype;
  return t;
}

Tensor Tensor::empty(Shape shape, DType dtype, Category category, std::string owner) {
  const int64_t bytes = checked_multiply(shape.numel(), static_cast<int64_t>(rz::size_bytes(dtype)), "bytes of a tensor");
  return make(Storage::make(static_cast<size_t>(bytes), category, std::move(owner)), shape, contiguous_strides(shape), 0, dtype);
}

Tensor Tensor::empty(Shape shape, DType dtype, std::string owner) { return empty(shape, dtype, ambient_category(), std::move(owner)); }

Tensor Tensor::zeros(Shape shape, DType dtype, std::string owner) {
  Tensor t = empty(shape, dtype, std::move(owner));
  if (!dry_run()) std::memset(t.raw_data(), 0, t.size_bytes());
  return t;
}

Tensor Tensor::full(Shape shape, double value, DType dtype, std::string owner) {
  Tensor t = empty(shape, dtype, std::move(owner));
  if (dry_run()) return t;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::fill_n(t.data<T>(), t.numel(), static_cast<T>(static_cast<compute_t<T>>(value)));
  });
  return t;
}

Tensor Tensor::over(std::shared_ptr<Storage> storage, Shape shape, DType dtype, int64_t offset) {
  RZ_CHECK(storage != nullptr, "Tensor::over needs a storage");
  const auto element = static_cast<int64_t>(rz::size_bytes(dtype));
  const auto capacity = static_cast<int64_t>(storage->size_bytes()) / element;
  RZ_CHECK(offset >= 0 && offset <= capacity && shape.numel() <= capacity - offset, "{}{} at element {} does not fit into '{}' of {} bytes",
           name(dtype), shape.str(), offset, storage->owner(), storage->size_bytes());
  return make(std::move(storage), shape, contiguous_strides(shape), offset, dtype);
}

bool Tensor::is_contiguous() const {
  const auto& i = impl();
  if (i.shape.numel() == 0) return true;
  int64_t expected = 1;
  for (int d = i.shape.rank() - 1; d >= 0; --d) {
    if (i.shape[d] != 1 && i.strides[static_cast<size_t>(d)] != expected) return false;
    expected *= i.shape[d];
  }
  return true;
}

double Tensor::item() const {
  RZ_CHECK(numel() == 1, "item() needs one element, got {}", str());
  return dispatch(dtype(), [&](auto tag) -> double {
    using T = typename decltype(tag)::type;
    return static_cast<double>(static_cast<compute_t<T>>(*data<T>()));
  });
}

Tensor Tensor::view_reshape(Shape shape) const {
  RZ_CHECK(shape.numel() == numel(), "cannot reshape {} to {}: {} elements against {}", str(), shape.str(), numel(), shape.numel());
  RZ_CHECK(is_contiguous(), "cannot view {} as {}: it is not contiguous", str(), shape.str());
  return make(storage(), shape, contiguous_strides(shape), offset(), dtype());
}

Tensor Tensor::view_slice(int dim, int64_t begin, int64_t end) const {
  const int d = shape().checked_dim(dim);
  RZ_CHECK(0 <= begin && begin <= end && end <= size(d), "slice [{}, {}) of dimension {} is outside {}", begin, end, d, str());
  return make(storage(), shape().with(d, end - begin), strides(), offset() + begin * stride(d), dtype());
}

Tensor Tensor::view_permute(std::span<const int> order) const {
  RZ_CHECK(static_cast<int>(order.size()) == rank(), "a permutation of {} dimensions does not fit {}", order.size(), str());
  std::array<int64_t, Shape::kMaxRank> extents{};
  Strides permuted{};
  std::array<bool, Shape::kMaxRank> seen{};
  for (size_t i = 0; i < order.size(); ++i) {
    const auto from = static_cast<size_t>(shape().checked_dim(order[i]));
    RZ_CHECK(!seen[from], "dimension {} appears twice in a permutation of {}", from, str());
    seen[from] = true;
    extents[i] = shape()[static_cast<int>(from)];
    permuted[i] = strides()[from];
  }
  return make(storage(), Shape(std::span<const int64_t>(extents.data(), order.size())), permuted, offset(), dtype());
}

Tensor Tensor::view_transpose(int dim0, int dim1) const {
  std::array<int, Shape::kMaxRank> order{};
  for (int d = 0; d < rank(); ++d) order[static_cast<size_t>(d)] = d;
  std::swap(order[static_cast<size_t>(shape().checked_dim(dim0))], order[static_cast<size_t>(shape().checked_dim(dim1))]);
  return view_permute(std::span<const int>(order.data(), static_cast<size_t>(rank())));
}

Tensor Tensor::view_broadcast(Shape target) const {
  RZ_CHECK(broadcast_shapes(shape(), target, "broadcast") == target, "{} does not broadcast to {}", str(), target.str());
  Strides out{};
  for (int d = 1; d <= rank(); ++d) out[static_cast<size_t>(target.rank() - d)] = shape()[-d] == 1 ? 0 : stride(-d);
  return make(storage(), target, out, offset(), dtype());
}

Tensor Tensor::view_alias() const { return make(storage(), shape(), strides(), offset(), dtype()); }

void Tensor::rebind_storage(const std::shared_ptr<Storage>& storage, int64_t offset) {
  RZ_CHECK(is_contiguous(), "cannot rebind {}: it is not contiguous", str());
  impl() = Impl{over(storage, shape(), dtype(), offset).impl_->storage, shape(), strides(), offset, dtype(), impl().autograd};
}

std::string Tensor::str() const { return defined() ? fmt::format("{}{}", name(dtype()), shape().str()) : "undefined"; }

void Tensor::check_type(DType wanted) const {
  RZ_CHECK(wanted == dtype(), "a tensor of {} was read as {}", str(), name(wanted));
}

}  // namespace rz
