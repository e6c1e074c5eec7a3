// The reduction family. Every reduction is brought to the form [A, R, B] -> [A, B]: R is reduced, B contiguous. R is cut into blocks
// by its extent alone; blocks are reduced in parallel and combined in order.
#include "runtime/kernels/reduction.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/elementwise_driver.h"
#include "runtime/kernels/cpu/reduction_blocks.h"

namespace rz::cpu {

namespace {

using Dims = std::array<bool, Shape::kMaxRank>;

Dims reduced_dims(const Tensor& x, std::span<const int> dims) {
  Dims reduced{};
  for (const int d : dims) {
    const auto u = static_cast<size_t>(x.shape().checked_dim(d));
    RZ_CHECK(!reduced[u], "dimension {} of {} is reduced twice", d, x.str());
    reduced[u] = true;
  }
  return reduced;
}

// x with the kept dimensions first, contiguous; x itself when it already is [A, R, B] with its rows in memory order.
struct Canonical {
  Tensor tensor;  // keeps the memory alive
  int64_t a = 1, r = 1, b = 1;
};

Canonical canonical(const Tensor& x, const Dims& reduced) {
  Canonical c{x};
  // A contiguous tensor whose reduced dimensions are neighbours (extents of 1 do not matter) needs no copy.
  int state = 0;  // 0: leading kept, 1: reduced, 2: trailing kept
  bool neighbours = true;
  for (int d = 0; d < x.rank(); ++d) {
    const int64_t extent = x.size(d);
    if (extent == 1) continue;
    const bool is_reduced = reduced[static_cast<size_t>(d)];
    if (is_reduced && state == 2) neighbours = false;
    if (is_reduced && state == 0) state = 1;
    if (!is_reduced && state == 1) state = 2;
    (state == 0 ? c.a : state == 1 ? c.r : c.b) *= extent;
  }
  if (neighbours && x.is_contiguous()) return c;
  std::vector<int> order;
  for (const bool want : {false, true})
    for (int d = 0; d < x.rank(); ++d)
      if (reduced[static_cast<size_t>(d)] == want) order.push_back(d);
  const Tensor view = x.view_permute(order);
  c.a = c.r = c.b = 1;
  for (int d = 0; d < x.rank(); ++d) (reduced[static_cast<size_t>(d)] ? c.r : c.a) *= x.size(d);
  c.tensor = Tensor::empty(view.shape(), x.dtype(), Category::workspace, "reduction input");
  elementwise_kernels().copy(view, c.tensor);
  return c;
}

// Checks that `out` is the reduction's result and gives it back with the reduced dimensions dropped or kept as it has them.
void check_output(const Tensor& x, const Dims& reduced, const Tensor& out) {
  std::vector<int64_t> kept, all;
  for (int d = 0; d < x.rank(); ++d) {
    const bool r = reduced[static_cast<size_t>(d)];
    if (!r) kept.push_back(x.size(d));
    all.push_back(r ? 1 : x.size(d));
  }
  RZ_CHECK(out.shape() == Shape(kept) || out.shape() == Shape(all), "a reduction of {} does not fit an output of {}", x.str(), out.str());
  RZ_CHECK(out.is_contiguous(), "the output of a reduction must be contiguous, got {}", out.str());
}

class CpuReductionKernels final : public ReductionKernels {
 public:
  void reduce(ReduceOp op, const Tensor& x, std::span<const int> dims, Tensor& out, bool accumulate) override {
    const Dims reduced = reduced_dims(x, dims);
    check_output(x, reduced, out);
    reduce_checked(op, x, reduced, out, accumulate);
  }

  void sum_to_shape(const Tensor& x, Tensor& out, bool accumulate) override {
    RZ_CHECK(broadcast_shapes(x.shape(), out.shape(), "sum_to_shape") == x.shape(), "{} cannot be summed to {}", x.str(), out.str());
    if (x.shape() == out.shape()) return elementwise_kernels().add_into(x, out, accumulate);
    Dims reduced{};
    const int lead = x.rank() - out.rank();
    for (int d = 0; d < x.rank(); ++d) reduced[static_cast<size_t>(d)] = d < lead || (out.size(d - lead) == 1 && x.size(d) != 1);
    RZ_CHECK(out.is_contiguous(), "the output of sum_to_shape must be contiguous, got {}", out.str());
    reduce_checked(ReduceOp::sum, x, reduced, out, accumulate);
  }

  void variance(const Tensor& x, std::span<const int> dims, double correction, Tensor& out, Tensor& mean) override {
    const Dims reduced = reduced_dims(x, dims);
    check_output(x, reduced, out);
    if (out.numel() == 0) return;
    // Rows are reduced whole: two passes over each, the first for its mean.
    Canonical c = canonical(x, reduced);
    if (c.b != 1) {
      Tensor rows = Tensor::empty({c.a, c.b, c.r}, x.dtype(), Category::workspace, "variance rows");
      elementwise_kernels().copy(c.tensor.view_reshape({c.a, c.r, c.b}).view_transpose(1, 2), rows);
      c.tensor = rows;
      c.a *= c.b;
    }
    RZ_CHECK(c.r > 0, "variance of no elements: {}", x.str());
    const double divisor = static_cast<double>(c.r) - correction;
    dispatch_floating(x.dtype(), "variance", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T* from = c.tensor.data<T>();
      T* to = out.data<T>();
      T* mean_to = mean.defined() ? mean.data<T>() : nullptr;
      parallel_for(c.a, std::max<int64_t>(1, 16384 / c.r), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* row = from + i * c.r;
          const double m = sum_row(row, c.r) / static_cast<double>(c.r);
          to[i] = static_cast<T>(static_cast<compute_t<T>>(sum_squared_deviations(row, c.r, m) / divisor));
          if (mean_to) mean_to[i] = static_cast<T>(static_cast<compute_t<T>>(m));
        }
      });
    });
  }

  void arg_max(const Tensor& x, int dim, Tensor& out) override {
    Dims reduced{};
    const int d = x.shape().checked_dim(dim);
    reduced[static_cast<size_t>(d)] = true;
    check_output(x, reduced, out);
    RZ_CHECK(x.size(d) > 0, "arg_max over nothing: dimension {} of {}", dim, x.str());
    if (out.numel() == 0) return;
    const Canonical c = canonical(x, reduced);
    int64_t* to = out.data<int64_t>();
    dispatch(x.dtype(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* from = c.tensor.data<T>();
      parallel_for(c.a * c.b, std::max<int64_t>(1, 8192 / c.r), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* at = from + i / c.b * c.r * c.b + i % c.b;
          int64_t best = 0;
          for (int64_t k = 1; k < c.r; ++k) {
            const C value = at[k * c.b], top = at[best * c.b];
            if (value > top || (value != value && top == top)) best = k;
          }
          to[i] = best;
        }
      });
    });
  }

  void cumulative_sum(const Tensor& x, int dim, bool reverse, Tensor& out, bool accumulate) override {
    RZ_CHECK(x.shape() == out.shape() && out.is_contiguous(), "cumulative_sum: {} does not fit an output of {}", x.str(), out.str());
    if (out.numel() == 0) return;
    const int d = x.shape().checked_dim(dim);
    int64_t b = 1;
    for (int e = d + 1; e < x.rank(); ++e) b *= x.size(e);
    const int64_t r = x.size(d);
    Tensor source = x;
    if (!x.is_contiguous()) {
      source = Tensor::empty(x.shape(), x.dtype(), Category::workspace, "cumulative_sum input");
      elementwise_kernels().copy(x, source);
    }
    dispatch_floating(x.dtype(), "cumulative_sum", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* from = source.data<T>();
      T* to = out.data<T>();
      parallel_for(x.numel() / r, std::max<int64_t>(1, 8192 / r), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t base = i / b * r * b + i % b;
          double sum = 0;
          for (int64_t k = 0; k < r; ++k) {
            const int64_t at = base + (reverse ? r - 1 - k : k) * b;
            sum += static_cast<double>(static_cast<C>(from[at]));
            const C value = static_cast<C>(sum);
            to[at] = static_cast<T>(accumulate ? static_cast<C>(static_cast<C>(to[at]) + value) : value);
          }
        }
      });
    });
  }

  void top_k(const Tensor& x, int64_t k, Tensor& values, Tensor& indices) override {
    RZ_CHECK(x.rank() >= 1 && k >= 0 && k <= x.size(-1), "top_k: {} of {} cannot be taken", k, x.str());
    RZ_CHECK(values.shape() == x.shape().with(-1, k) && indices.shape() == values.shape() && values.dtype() == x.dtype(),
             "top_k: {} and {} do not fit {} of {}", values.str(), indices.str(), k, x.str());
    if (values.numel() == 0) return;
    Tensor source = x;
    if (!x.is_contiguous()) {
      source = Tensor::empty(x.shape(), x.dtype(), Category::workspace, "top_k input");
      elementwise_kernels().copy(x, source);
    }
    const int64_t n = x.size(-1);
    dispatch(x.dtype(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* from = source.data<T>();
      T* to = values.data<T>();
      int64_t* index_to = indices.data<int64_t>();
      parallel_for(x.numel() / n, std::max<int64_t>(1, 2048 / n), [&](int64_t begin, int64_t end) {
        std::vector<int64_t> order(static_cast<size_t>(n));
        for (int64_t row = begin; row < end; ++row) {
          const T* at = from + row * n;
          std::iota(order.begin(), order.end(), 0);
          // A strict order with NaN above everything: partial_sort needs one.
          std::partial_sort(order.begin(), order.begin() + k, order.end(), [at](int64_t i, int64_t j) {
            const C x_i = at[i], x_j = at[j];
            const bool nan_i = x_i != x_i, nan_j = x_j != x_j;
            if (nan_i != nan_j) return nan_i;
            if (x_i != x_j && !nan_i) return x_i > x_j;
            return i < j;
          });
          for (int64_t i = 0; i < k; ++i) {
            index_to[row * k + i] = order[static_cast<size_t>(i)];
            to[row * k + i] = at[order[static_cast<size_t>(i)]];
          }
        }
      });
    });
  }

 private:
  static void reduce_checked(ReduceOp op, const Tensor& x, const Dims& reduced, Tensor& out, bool accumulate) {
    RZ_CHECK(x.dtype() == out.dtype(), "a reduction of {} does not fit an output of {}", x.str(), out.str());
    if (out.numel() == 0) return;
    const Canonical c = canonical(x, reduced);
    RZ_CHECK(c.r > 0 || (op != ReduceOp::max && op != ReduceOp::min && op != ReduceOp::mean),
             "a maximum, minimum or mean over no elements: {}", x.str());
    reduce_blocks(op, c.tensor, c.a, c.r, c.b, out, accumulate);
  }
};

}  // namespace

ReductionKernels& reduction_kernels() {
  static CpuReductionKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
