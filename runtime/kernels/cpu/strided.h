// One index space over several strided operands, with as few dimensions as they allow.
#pragma once

#include <array>
#include <span>

#include "runtime/core/tensor.h"

namespace rz::cpu {

struct Operand {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Strides strides{};
  bool dense = false;     // its elements lie one after another in the order of the index space
  bool constant = false;  // all strides are 0
};

// A row-major index space of `numel` points; operands[i].strides belong to its dimensions.
struct IndexSpace {
  static constexpr int kMaxOperands = 4;
  int rank = 0;
  int64_t numel = 0;
  std::array<int64_t, Shape::kMaxRank> extents{};
  std::array<Operand, kMaxOperands> operands;
  int count = 0;

  int64_t inner() const { return rank == 0 ? 1 : extents[static_cast<size_t>(rank - 1)]; }
};

// The space of `shape`; every tensor broadcasts to it. Dimensions of extent 1 are dropped and neighbours merged where all
// operands allow it.
IndexSpace make_index_space(const Shape& shape, std::span<const Tensor* const> tensors);

// Calls run(offset, n) for the runs along the innermost dimension that cover the flat positions [begin, begin + n) of the space;
// `offset` is the operand's, in elements.
template <class F>
void for_each_run(const IndexSpace& space, const Operand& operand, int64_t begin, int64_t n, F&& run) {
  std::array<int64_t, Shape::kMaxRank> index{};
  int64_t rest = begin;
  int64_t offset = 0;
  for (int d = space.rank - 1; d >= 0; --d) {
    const auto u = static_cast<size_t>(d);
    index[u] = rest % space.extents[u];
    rest /= space.extents[u];
    offset += index[u] * operand.strides[u];
  }
  const auto last = static_cast<size_t>(space.rank - 1);
  while (n > 0) {
    const int64_t length = space.rank == 0 ? 1 : std::min(n, space.extents[last] - index[last]);
    run(offset, length);
    n -= length;
    if (n == 0) return;
    offset += length * operand.strides[last];
    index[last] += length;
    for (int d = space.rank - 1; d > 0; --d) {
      const auto u = static_cast<size_t>(d);
      if (index[u] < space.extents[u]) break;
      offset += operand.strides[u - 1] - operand.strides[u] * space.extents[u];
      index[u] = 0;
      ++index[u - 1];
    }
  }
}

}  // namespace rz::cpu
