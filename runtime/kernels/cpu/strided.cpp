#include "runtime/kernels/cpu/strided.h"

namespace rz::cpu {

IndexSpace make_index_space(const Shape& shape, std::span<const Tensor* const> tensors) {
  IndexSpace space;
  space.numel = shape.numel();
  space.count = static_cast<int>(tensors.size());
  RZ_CHECK(space.count <= IndexSpace::kMaxOperands, "an index space holds at most {} operands", IndexSpace::kMaxOperands);
  std::array<Strides, IndexSpace::kMaxOperands> strides{};
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Tensor& x = *tensors[t];
    RZ_CHECK(x.rank() <= shape.rank(), "{} does not broadcast to {}", x.str(), shape.str());
    for (int d = 1; d <= x.rank(); ++d) {
      RZ_CHECK(x.size(-d) == shape[-d] || x.size(-d) == 1, "{} does not broadcast to {}", x.str(), shape.str());
      strides[t][static_cast<size_t>(shape.rank() - d)] = x.size(-d) == 1 ? 0 : x.stride(-d);
    }
    space.operands[t].data = x.numel() == 0 ? nullptr : x.raw_data();
    space.operands[t].dtype = x.dtype();
  }
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == 1) continue;
    const auto from = static_cast<size_t>(d);
    bool merge = space.rank > 0;
    for (size_t t = 0; merge && t < tensors.size(); ++t)
      merge = space.operands[t].strides[static_cast<size_t>(space.rank - 1)] == strides[t][from] * shape[d];
    if (!merge) ++space.rank;
    const auto to = static_cast<size_t>(space.rank - 1);
    space.extents[to] = merge ? space.extents[to] * shape[d] : shape[d];
    for (size_t t = 0; t < tensors.size(); ++t) space.operands[t].strides[to] = strides[t][from];
  }
  for (size_t t = 0; t < tensors.size(); ++t) {
    Operand& o = space.operands[t];
    o.dense = o.constant = true;
    int64_t expected = 1;
    for (int d = space.rank - 1; d >= 0; --d) {
      const auto u = static_cast<size_t>(d);
      o.dense = o.dense && o.strides[u] == expected;
      o.constant = o.constant && o.strides[u] == 0;
      expected *= space.extents[u];
    }
  }
  return space;
}

}  // namespace rz::cpu
