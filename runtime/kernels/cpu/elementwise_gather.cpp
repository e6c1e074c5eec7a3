#include "runtime/kernels/cpu/elementwise_gather.h"

#include <algorithm>

#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/strided.h"

namespace rz::cpu {

namespace {

// Calls visit(dense_offset, table_offset) for every index: `table` is read or written where the index says, `dense` lies like the
// index. One line along `dim` belongs to one thread.
template <class Visit>
void for_each_index(const char* what, const Tensor& table, int dim, const Tensor& index, const Tensor& dense, Visit&& visit) {
  RZ_CHECK(index.dtype() == DType::i32 || index.dtype() == DType::i64, "{}: an index must be i32 or i64, not {}", what, index.str());
  RZ_CHECK(table.rank() == index.rank() && index.shape() == dense.shape(), "{} along dimension {}: an index of {} does not fit {} and {}",
           what, dim, index.str(), table.str(), dense.str());
  const int d = table.shape().checked_dim(dim);
  RZ_CHECK(index.shape() == table.shape().with(d, index.size(d)), "{} along dimension {}: an index of {} does not fit {}", what, dim,
           index.str(), table.str());
  if (index.numel() == 0) return;
  const int64_t extent = table.size(d), length = index.size(d);
  // The space of lines: `dim` cut down to its first element in each tensor.
  const Tensor lines[] = {table.view_slice(d, 0, std::min<int64_t>(1, extent)), index.view_slice(d, 0, 1), dense.view_slice(d, 0, 1)};
  RZ_CHECK(extent > 0, "{}: dimension {} of {} has nothing to index", what, dim, table.str());
  const Tensor* pointers[] = {&lines[0], &lines[1], &lines[2]};
  const IndexSpace space = make_index_space(lines[1].shape(), pointers);
  const int64_t table_stride = table.stride(d), index_stride = index.stride(d), dense_stride = dense.stride(d);
  dispatch(index.dtype(), [&](auto tag) {
    using I = typename decltype(tag)::type;
    if constexpr (std::is_same_v<I, int32_t> || std::is_same_v<I, int64_t>) {
      const I* at = index.data<I>();
      parallel_for(space.numel, std::max<int64_t>(1, 4096 / length), [&](int64_t begin, int64_t end) {
        for (int64_t line = begin; line < end; ++line) {
          int64_t offsets[3] = {};
          for (int64_t rest = line, e = space.rank - 1; e >= 0; --e) {
            const auto u = static_cast<size_t>(e);
            for (size_t o = 0; o < 3; ++o) offsets[o] += rest % space.extents[u] * space.operands[o].strides[u];
            rest /= space.extents[u];
          }
          for (int64_t i = 0; i < length; ++i) {
            const auto k = static_cast<int64_t>(at[offsets[1] + i * index_stride]);
            RZ_CHECK(k >= 0 && k < extent, "{}: index {} is outside [0, {}) of dimension {} of {}", what, k, extent, dim, table.str());
            visit(offsets[2] + i * dense_stride, offsets[0] + k * table_stride);
          }
        }
      });
    }
  });
}

}  // namespace

void gather_along(const Tensor& x, int dim, const Tensor& index, Tensor& out) {
  RZ_CHECK(x.dtype() == out.dtype(), "gather: {} does not fit an output of {}", x.str(), out.str());
  dispatch(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = x.numel() == 0 ? nullptr : x.data<T>();
    T* to = out.numel() == 0 ? nullptr : out.data<T>();
    for_each_index("gather", x, dim, index, out, [=](int64_t dense, int64_t table) { to[dense] = from[table]; });
  });
}

void scatter_add_along(const Tensor& x, int dim, const Tensor& index, Tensor& out) {
  RZ_CHECK(x.dtype() == out.dtype(), "scatter_add: {} does not fit an output of {}", x.str(), out.str());
  dispatch_floating(x.dtype(), "scatter_add", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const T* from = x.numel() == 0 ? nullptr : x.data<T>();
    T* to = out.numel() == 0 ? nullptr : out.data<T>();
    for_each_index("scatter_add", out, dim, index, x, [=](int64_t dense, int64_t table) {
      to[table] = static_cast<T>(static_cast<C>(static_cast<C>(to[table]) + static_cast<C>(from[dense])));
    });
  });
}

}  // namespace rz::cpu
