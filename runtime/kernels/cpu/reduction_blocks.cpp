#include "runtime/kernels/cpu/reduction_blocks.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/cpu/convert.h"

namespace rz::cpu {

namespace {

constexpr int64_t kColumns = 512;     // columns reduced together: their partial results stay in the L1 cache
constexpr int64_t kRowBlock = 16384;  // a row (B = 1) is cut into blocks of this many elements
constexpr int64_t kMostBlocks = 64;   // of R, for B > 1
constexpr int64_t kLeastRows = 64;

struct SumOp {
  static double start() { return 0; }
  static double join(double a, double b) { return a + b; }
};
struct ProductOp {
  static double start() { return 1; }
  static double join(double a, double b) { return a * b; }
};
struct MaxOp {
  static double start() { return -std::numeric_limits<double>::infinity(); }
  static double join(double a, double b) { return a > b || a != a ? a : b; }
};
struct MinOp {
  static double start() { return std::numeric_limits<double>::infinity(); }
  static double join(double a, double b) { return a < b || a != a ? a : b; }
};

template <class T>
double wide(T x) {
  return static_cast<double>(static_cast<compute_t<T>>(x));
}

template <class Op, class T>
double reduce_row(const T* x, int64_t n) {
  constexpr int64_t kLanes = kSumLanes;
  double lanes[kLanes];
  std::fill_n(lanes, kLanes, Op::start());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = Op::join(lanes[l], wide(x[i + l]));
  double result = Op::start();
  for (const double lane : lanes) result = Op::join(result, lane);
  for (; i < n; ++i) result = Op::join(result, wide(x[i]));
  return result;
}

// columns[j] = op over the rows of x[i * stride + j].
template <class Op, class T>
void reduce_columns(const T* x, int64_t rows, int64_t stride, int64_t n, double* __restrict columns) {
  std::fill_n(columns, n, Op::start());
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = x + i * stride;
    if constexpr (std::is_same_v<T, f16>) {  // g++ 12 does not vectorize the conversions of _Float16
      float converted[kColumns];
      load_run(row, 1, converted, n);
      for (int64_t j = 0; j < n; ++j) columns[j] = Op::join(columns[j], wide(converted[j]));
    } else {
      for (int64_t j = 0; j < n; ++j) columns[j] = Op::join(columns[j], wide(row[j]));
    }
  }
}

template <class T>
void store(T& to, double value, bool accumulate) {
  using C = compute_t<T>;
  to = static_cast<T>(accumulate ? static_cast<C>(static_cast<C>(to) + static_cast<C>(value)) : static_cast<C>(value));
}

template <class Op, class T>
void reduce_typed(const T* x, int64_t a, int64_t r, int64_t b, T* out, double factor, bool accumulate) {
  // Cuts by shape alone.
  const int64_t block = b == 1 ? kRowBlock : std::max(kLeastRows, (r + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = std::max<int64_t>(1, (r + block - 1) / block);
  const int64_t column_blocks = (b + kColumns - 1) / kColumns;
  const int64_t task_elements = std::max<int64_t>(1, std::min(r, block) * std::min(b, kColumns));
  const int64_t grain = std::max<int64_t>(1, 16384 / task_elements);
  if (blocks == 1) {
    parallel_for(a * column_blocks, grain, [&](int64_t begin, int64_t end) {
      double columns[kColumns];
      for (int64_t task = begin; task < end; ++task) {
        const int64_t i = task / column_blocks, j = task % column_blocks * kColumns;
        const int64_t n = std::min(kColumns, b - j);
        if (b == 1)
          columns[0] = reduce_row<Op>(x + i * r, r);
        else
          reduce_columns<Op>(x + i * r * b + j, r, b, n, columns);
        for (int64_t c = 0; c < n; ++c) store(out[i * b + j + c], columns[c] * factor, accumulate);
      }
    });
    return;
  }
  const Tensor scratch = Tensor::empty({a, blocks, b}, DType::f64, Category::workspace, "reduction partials");
  if (dry_run()) return;
  double* partial = scratch.data<double>();
  parallel_for(a * blocks * column_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t j = task % column_blocks * kColumns;
      const int64_t k = task / column_blocks % blocks;
      const int64_t i = task / column_blocks / blocks;
      const int64_t rows = std::min(block, r - k * block);
      const T* from = x + (i * r + k * block) * b + j;
      double* to = partial + (i * blocks + k) * b + j;
      if (b == 1)
        *to = reduce_row<Op>(from, rows);
      else
        reduce_columns<Op>(from, rows, b, std::min(kColumns, b - j), to);
    }
  });
  for (int64_t i = 0; i < a; ++i)
    for (int64_t j = 0; j < b; ++j) {
      double value = partial[i * blocks * b + j];
      for (int64_t k = 1; k < blocks; ++k) value = Op::join(value, partial[(i * blocks + k) * b + j]);
      store(out[i * b + j], value * factor, accumulate);
    }
}

}  // namespace

void reduce_blocks(ReduceOp op, const Tensor& x, int64_t a, int64_t r, int64_t b, Tensor& out, bool accumulate) {
  dispatch_floating(x.dtype(), "a reduction", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = x.numel() == 0 ? nullptr : x.data<T>();
    T* to = out.data<T>();
    switch (op) {
      case ReduceOp::sum:
        return reduce_typed<SumOp>(from, a, r, b, to, 1.0, accumulate);
      case ReduceOp::mean:
        return reduce_typed<SumOp>(from, a, r, b, to, 1.0 / static_cast<double>(r), accumulate);
      case ReduceOp::max:
        return reduce_typed<MaxOp>(from, a, r, b, to, 1.0, accumulate);
      case ReduceOp::min:
        return reduce_typed<MinOp>(from, a, r, b, to, 1.0, accumulate);
      case ReduceOp::prod:
        return reduce_typed<ProductOp>(from, a, r, b, to, 1.0, accumulate);
    }
  });
}

}  // namespace rz::cpu
