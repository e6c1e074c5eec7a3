// Tensor: a value handle (shape, strides, element type) over a shared Storage. Copying a handle copies no bytes.
//
// * view_* never copies: views share the Storage, and through it see releases and in-place changes.
// * No arithmetic here: kernels/ computes, ops/ computes and records for backward.
// * `autograd` is a slot that the autograd layer fills; core knows only that it can be held.
// Not thread-safe per handle; reading one Storage from several threads is fine.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/core/dtype.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/shape.h"
#include "runtime/core/storage.h"

namespace rz {

struct AutogradMetaBase {
  virtual ~AutogradMetaBase() = default;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: defined() is false, everything else throws

  // Uninitialized, contiguous. Category: the ambient one (CategoryScope) unless given.
  static Tensor empty(Shape shape, DType dtype = DType::f32, std::string owner = "tensor");
  static Tensor empty(Shape shape, DType dtype, Category category, std::string owner);
  static Tensor zeros(Shape shape, DType dtype = DType::f32, std::string owner = "tensor");
  static Tensor full(Shape shape, double value, DType dtype = DType::f32, std::string owner = "tensor");
  // Copies `values`; their number must match the shape.
  template <class T>
  static Tensor of(Shape shape, const std::vector<T>& values, std::string owner = "tensor");
  static Tensor scalar(double value, DType dtype = DType::f32) { return full({}, value, dtype); }
  // A tensor over part of an existing storage, starting `offset` elements of `dtype` into it.
  static Tensor over(std::shared_ptr<Storage> storage, Shape shape, DType dtype, int64_t offset = 0);

  bool defined() const { return impl_ != nullptr; }
  const Shape& shape() const { return impl().shape; }
  const Strides& strides() const { return impl().strides; }
  int64_t stride(int dim) const { return impl().strides[static_cast<size_t>(shape().checked_dim(dim))]; }
  int64_t size(int dim) const { return shape()[dim]; }
  int rank() const { return shape().rank(); }
  int64_t numel() const { return shape().numel(); }
  DType dtype() const { return impl().dtype; }
  size_t size_bytes() const { return static_cast<size_t>(numel()) * rz::size_bytes(dtype()); }
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return impl().storage; }
  int64_t offset() const { return impl().offset; }
  Device device() const { return storage()->device(); }
  uint32_t version() const { return storage()->version(); }
  void bump_version() { storage()->bump_version(); }
  // Two handles on one tensor (not merely on one storage).
  bool same(const Tensor& other) const { return impl_ == other.impl_; }

  // First element; throws rz::Error when T is not the element type or the storage is released.
  template <class T>
  T* data() const {
    check_type(dtype_of<T>);
    return reinterpret_cast<T*>(raw_data());
  }
  std::byte* raw_data() const { return storage()->data() + impl().offset * static_cast<int64_t>(rz::size_bytes(dtype())); }

  // The value of a one-element tensor; the elements of a contiguous one, converted to T.
  double item() const;
  template <class T>
  std::vector<T> to_vector() const;

  // Views. Bounds are checked; errors name the shape and what was asked.
  Tensor view_reshape(Shape shape) const;                               // contiguous tensors only
  Tensor view_slice(int dim, int64_t begin, int64_t end) const;         // [begin, end)
  Tensor view_transpose(int dim0, int dim1) const;
  Tensor view_permute(std::span<const int> order) const;
  Tensor view_permute(std::initializer_list<int> order) const { return view_permute(std::span<const int>(order.begin(), order.size())); }
  Tensor view_broadcast(Shape target) const;                            // stride 0 along broadcast dimensions
  Tensor view_alias() const;                                            // a new tensor on the same elements, without autograd state

  // Moves this handle and all its copies onto another storage (same shape and type): how sharding lays parameters out.
  void rebind_storage(const std::shared_ptr<Storage>& storage, int64_t offset);

  const std::shared_ptr<AutogradMetaBase>& autograd() const { return impl().autograd; }
  void set_autograd(std::shared_ptr<AutogradMetaBase> meta) { impl().autograd = std::move(meta); }

  std::string str() const;  // "f32[2, 3]"

 private:
  struct Impl {
    std::shared_ptr<Storage> storage;
    Shape shape;
    Strides strides{};
    int64_t offset = 0;
    DType dtype = DType::f32;
    std::shared_ptr<AutogradMetaBase> autograd;
  };

  Impl& impl() const {
    RZ_CHECK(impl_ != nullptr, "an undefined tensor was used");
    return *impl_;
  }
  static Tensor make(std::shared_ptr<Storage> storage, Shape shape, Strides strides, int64_t offset, DType dtype);
  void check_type(DType wanted) const;

  std::shared_ptr<Impl> impl_;
};

template <class T>
Tensor Tensor::of(Shape shape, const std::vector<T>& values, std::string owner) {
  RZ_CHECK(shape.numel() == static_cast<int64_t>(values.size()), "{} values do not fill shape {}", values.size(), shape.str());
  Tensor t = empty(shape, dtype_of<T>, std::move(owner));
  if (!dry_run()) std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  RZ_CHECK(is_contiguous(), "to_vector needs a contiguous tensor, got {} with strides", str());
  std::vector<T> out(static_cast<size_t>(numel()));
  dispatch(dtype(), [&](auto tag) {
    using E = typename decltype(tag)::type;
    const E* from = data<E>();
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(static_cast<compute_t<E>>(from[i]));
  });
  return out;
}

}  // namespace rz
