// Shapes of tensors: up to kMaxRank extents, checked when made (no negative extent, no overflow of the element count).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace rz {

class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;  // a scalar: rank 0, one element
  Shape(std::initializer_list<int64_t> extents) : Shape(std::span<const int64_t>(extents.begin(), extents.size())) {}
  // Throws rz::Error on a negative extent, more than kMaxRank extents, or an element count that overflows int64.
  explicit Shape(std::span<const int64_t> extents);

  int rank() const { return rank_; }
  int64_t numel() const { return numel_; }
  // Extent of dimension `dim`; negative counts from the back.
  int64_t operator[](int dim) const { return extents_[static_cast<size_t>(checked_dim(dim))]; }
  // The dimension as a number in [0, rank); throws rz::Error naming the shape otherwise.
  int checked_dim(int dim) const;
  std::span<const int64_t> extents() const { return {extents_.data(), static_cast<size_t>(rank_)}; }

  // The same shape with dimension `dim` set to `extent`, or removed.
  Shape with(int dim, int64_t extent) const;
  Shape without(int dim) const;

  bool operator==(const Shape& other) const;
  std::string str() const;  // "[2, 3]"

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
  int64_t numel_ = 1;
};

using Strides = std::array<int64_t, Shape::kMaxRank>;  // in elements

// Row-major strides.
Strides contiguous_strides(const Shape& shape);

// The shape to which both broadcast (NumPy's rule); throws rz::Error naming `what` and both shapes when there is none.
Shape broadcast_shapes(const Shape& a, const Shape& b, std::string_view what);

// a * b, or rz::Error naming `what` when it overflows.
int64_t checked_multiply(int64_t a, int64_t b, std::string_view what);

}  // namespace rz
