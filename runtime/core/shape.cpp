#include "runtime/core/shape.h"

#include <algorithm>

#include "runtime/core/error.h"

namespace rz {

int64_t checked_multiply(int64_t a, int64_t b, std::string_view what) {
  int64_t product = 0;
  RZ_CHECK(!__builtin_mul_overflow(a, b, &product), "{}: {} x {} overflows 64 bits", what, a, b);
  return product;
}

Shape::Shape(std::span<const int64_t> extents) : rank_(static_cast<int>(extents.size())) {
  RZ_CHECK(extents.size() <= static_cast<size_t>(kMaxRank), "a tensor has at most {} dimensions, not {}", kMaxRank, extents.size());
  // Extents of zero must not hide an overflow of the others: the product is taken over max(extent, 1).
  int64_t product = 1;
  bool empty = false;
  for (size_t i = 0; i < extents.size(); ++i) {
    RZ_CHECK(extents[i] >= 0, "extent {} of a shape is negative: {}", i, extents[i]);
    extents_[i] = extents[i];
    empty = empty || extents[i] == 0;
    product = checked_multiply(product, std::max<int64_t>(extents[i], 1), "element count of a shape");
  }
  numel_ = empty ? 0 : product;
}

int Shape::checked_dim(int dim) const {
  const int positive = dim < 0 ? dim + rank_ : dim;
  RZ_CHECK(positive >= 0 && positive < rank_, "dimension {} does not exist in shape {}", dim, str());
  return positive;
}

Shape Shape::with(int dim, int64_t extent) const {
  auto copy = extents_;
  copy[static_cast<size_t>(checked_dim(dim))] = extent;
  return Shape(std::span<const int64_t>(copy.data(), static_cast<size_t>(rank_)));
}

Shape Shape::without(int dim) const {
  auto copy = extents_;
  const int at = checked_dim(dim);
  std::copy(copy.begin() + at + 1, copy.begin() + rank_, copy.begin() + at);
  return Shape(std::span<const int64_t>(copy.data(), static_cast<size_t>(rank_ - 1)));
}

bool Shape::operator==(const Shape& other) const { return std::ranges::equal(extents(), other.extents()); }

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(extents(), ", ")); }

Strides contiguous_strides(const Shape& shape) {
  Strides strides{};
  int64_t stride = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = stride;
    stride *= std::max<int64_t>(shape[d], 1);
  }
  return strides;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, std::string_view what) {
  const int rank = std::max(a.rank(), b.rank());
  std::array<int64_t, Shape::kMaxRank> extents{};
  for (int d = 1; d <= rank; ++d) {
    const int64_t x = d <= a.rank() ? a[-d] : 1;
    const int64_t y = d <= b.rank() ? b[-d] : 1;
    RZ_CHECK(x == y || x == 1 || y == 1, "{}: shapes {} and {} do not broadcast", what, a.str(), b.str());
    extents[static_cast<size_t>(rank - d)] = x == 1 ? y : x;
  }
  return Shape(std::span<const int64_t>(extents.data(), static_cast<size_t>(rank)));
}

}  // namespace rz
