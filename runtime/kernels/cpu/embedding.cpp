// Table lookup on the CPU. The gradient groups positions by id (a stable counting sort), then every thread sums its own columns of
// every row: no two threads write one element, and each element's sum runs over positions in order.
#include "runtime/kernels/embedding.h"

#include <cstring>

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 16384;
constexpr int64_t kColumnBlock = 256;  // columns summed at a time, in a buffer on the stack

template <class F>
void with_ids(const Tensor& ids, F f) {
  if (ids.dtype() == DType::i32) return f(ids.data<int32_t>());
  RZ_CHECK(ids.dtype() == DType::i64, "embedding: ids must be i32 or i64, not {}", ids.str());
  f(ids.data<int64_t>());
}

void check(const Tensor& ids, const Tensor& rows, const Tensor& table) {
  RZ_CHECK(ids.is_contiguous() && rows.is_contiguous() && table.is_contiguous() && rows.rank() == 2 && table.rank() == 2 &&
               rows.size(0) == ids.numel() && rows.size(1) == table.size(1) && rows.dtype() == table.dtype(),
           "embedding: ids {}, rows {} and table {} do not fit", ids.str(), rows.str(), table.str());
  if (dry_run()) return;
  with_ids(ids, [&](const auto* id) {
    const int64_t size = table.size(0);
    for (int64_t i = 0; i < ids.numel(); ++i)
      RZ_CHECK(0 <= id[i] && id[i] < size, "embedding: id {} at position {} is outside a table of {} rows", id[i], i, size);
  });
}

class CpuEmbeddingKernels final : public EmbeddingKernels {
 public:
  void forward(const Tensor& ids, const Tensor& weight, Tensor& y) override {
    check(ids, y, weight);
    const size_t row_bytes = static_cast<size_t>(weight.size(1)) * size_bytes(weight.dtype());
    const std::byte* from = weight.raw_data();
    std::byte* to = y.raw_data();
    with_ids(ids, [&](const auto* id) {
      parallel_for(ids.numel(), std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, weight.size(1))),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       std::memcpy(to + static_cast<size_t>(i) * row_bytes, from + static_cast<size_t>(id[i]) * row_bytes, row_bytes);
                   });
    });
  }

  void backward(const Tensor& ids, const Tensor& grad, Tensor& dweight, bool accumulate) override {
    check(ids, grad, dweight);
    const int64_t count = ids.numel();
    const int64_t table = dweight.size(0);
    // order[start[v] .. start[v + 1]) are the positions with id v, ascending.
    const Tensor start_tensor = Tensor::empty({table + 1}, DType::i64, Category::workspace, "embedding order");
    const Tensor order_tensor = Tensor::empty({count}, DType::i64, Category::workspace, "embedding order");
    if (dry_run()) return;
    int64_t* start = start_tensor.data<int64_t>();
    int64_t* order = order_tensor.data<int64_t>();
    with_ids(ids, [&](const auto* id) {
      std::fill_n(start, table + 1, 0);
      for (int64_t i = 0; i < count; ++i) ++start[id[i] + 1];
      for (int64_t v = 0; v < table; ++v) start[v + 1] += start[v];
      // Backwards through the positions, moving each group's end down: start[v + 1] ends as the group's begin, hence the shift.
      for (int64_t i = count - 1; i >= 0; --i) order[--start[id[i] + 1]] = i;
      std::memmove(start, start + 1, static_cast<size_t>(table) * sizeof(int64_t));
      start[table] = count;
    });
    dispatch_floating(dweight.dtype(), "embedding backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const int64_t width = dweight.size(1);
      const int64_t grain = std::max<int64_t>(16, kGrainElements / std::max<int64_t>(1, table));
      parallel_for(width, grain, [&](int64_t begin, int64_t end) {
        for (int64_t column = begin; column < end; column += kColumnBlock)
          add_columns(start, order, table, grad.data<T>(), dweight.data<T>(), width, column, std::min(end, column + kColumnBlock),
                      accumulate);
      });
    });
  }

 private:
  template <class T>
  static void add_columns(const int64_t* start, const int64_t* order, int64_t table, const T* grad, T* out, int64_t width, int64_t begin,
                          int64_t end, bool accumulate) {
    using C = compute_t<T>;
    const int64_t columns = end - begin;
    C sum[kColumnBlock];
    for (int64_t v = 0; v < table; ++v) {
      T* __restrict to = out + v * width + begin;
      if (start[v] == start[v + 1]) {
        if (!accumulate) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(columns) * sizeof(T));
        continue;
      }
      std::fill_n(sum, columns, C(0));
      for (int64_t p = start[v]; p < start[v + 1]; ++p) {
        const T* __restrict row = grad + order[p] * width + begin;
        for (int64_t c = 0; c < columns; ++c) sum[c] += static_cast<C>(row[c]);
      }
      if (accumulate)
        for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<T>(static_cast<C>(to[c]) + sum[c]);
      else
        for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<T>(sum[c]);
    }
  }
};

}  // namespace

EmbeddingKernels& embedding_kernels() {
  static CpuEmbeddingKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
