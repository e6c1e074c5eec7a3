// Softmax and cross entropy on the CPU: rows in parallel, each row by one thread in blocks that stay in cache.
#include "runtime/kernels/loss.h"

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/softmax_rows.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 8192;

int64_t row_grain(int64_t width) { return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width)); }

void check_matrix(const char* what, const Tensor& x, const Tensor& other) {
  RZ_CHECK(x.rank() == 2 && x.is_contiguous() && other.is_contiguous() && other.shape() == x.shape() && other.dtype() == x.dtype(),
           "{}: {} and {} must be contiguous matrices of one shape and type", what, x.str(), other.str());
}

void check_column(const char* what, const Tensor& x, const Tensor& column) {
  RZ_CHECK(column.rank() == 1 && column.size(0) == x.size(0) && column.is_contiguous(), "{}: {} does not have one element per row of {}",
           what, column.str(), x.str());
}

// out[i] = or += f(i)
template <class T, class F>
[[gnu::always_inline]] inline void write_row(T* __restrict out, int64_t n, bool accumulate, F f) {
  using C = compute_t<T>;
  if (accumulate)
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<C>(out[i]) + f(i));
  else
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(f(i));
}

// body(T tag, compute type tag, first row, last row) over the rows of x.
template <class F>
void for_rows(const char* what, const Tensor& x, F body) {
  dispatch_floating(x.dtype(), what, [&](auto tag) {
    parallel_for(x.size(0), row_grain(x.size(1)), [&](int64_t begin, int64_t end) { body(tag, begin, end); });
  });
}

// Reads element r of an i32 or i64 tensor.
auto indices(const Tensor& t) {
  RZ_CHECK(t.dtype() == DType::i32 || t.dtype() == DType::i64, "cross entropy: targets must be i32 or i64, not {}", t.str());
  const bool wide = t.dtype() == DType::i64;
  const std::byte* data = t.raw_data();
  return [wide, data](int64_t r) -> int64_t {
    return wide ? reinterpret_cast<const int64_t*>(data)[r] : reinterpret_cast<const int32_t*>(data)[r];
  };
}

class CpuLossKernels final : public LossKernels {
 public:
  void softmax(const Tensor& x, Tensor& y) override {
    check_matrix("softmax", x, y);
    for_rows("softmax", x, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = x.size(1);
      alignas(64) C scratch[kSoftmaxBlock];
      for (int64_t r = begin; r < end; ++r) {
        const T* from = x.data<T>() + r * width;
        T* to = y.data<T>() + r * width;
        const RowStats<C> stats = row_stats(from, width, scratch);
        const C inverse = stats.inverse_sum();
        if (width <= kSoftmaxBlock)
          write_row(to, width, false, [&](int64_t i) { return scratch[i] * inverse; });
        else
          write_row(to, width, false, [&](int64_t i) { return exp_flushed(static_cast<C>(from[i]) - stats.max) * inverse; });
      }
    });
  }

  void softmax_backward(const Tensor& grad, const Tensor& y, Tensor& dx, bool accumulate) override {
    check_matrix("softmax backward", y, grad);
    check_matrix("softmax backward", y, dx);
    for_rows("softmax backward", y, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = y.size(1);
      for (int64_t r = begin; r < end; ++r) {
        const T* g = grad.data<T>() + r * width;
        const T* p = y.data<T>() + r * width;
        const C dot = sum_lanes(g, p, width, [](auto a, auto b) { return a * b; });
        write_row(dx.data<T>() + r * width, width, accumulate,
                  [&](int64_t i) { return static_cast<C>(p[i]) * (static_cast<C>(g[i]) - dot); });
      }
    });
  }

  void log_softmax(const Tensor& x, Tensor& y) override {
    check_matrix("log_softmax", x, y);
    for_rows("log_softmax", x, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = x.size(1);
      alignas(64) C scratch[kSoftmaxBlock];
      for (int64_t r = begin; r < end; ++r) {
        const T* from = x.data<T>() + r * width;
        const RowStats<C> stats = row_stats(from, width, scratch);
        // A row that is -inf throughout keeps its -inf: -inf - 0 - 0. Subtracted one after the other, for max + log(sum) has few digits where
        // max is large.
        const C log_sum = stats.sum == C(0) ? C(0) : math::log(stats.sum);
        write_row(y.data<T>() + r * width, width, false, [&](int64_t i) { return (static_cast<C>(from[i]) - stats.max) - log_sum; });
      }
    });
  }

  void log_softmax_backward(const Tensor& grad, const Tensor& y, Tensor& dx, bool accumulate) override {
    check_matrix("log_softmax backward", y, grad);
    check_matrix("log_softmax backward", y, dx);
    for_rows("log_softmax backward", y, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = y.size(1);
      for (int64_t r = begin; r < end; ++r) {
        const T* g = grad.data<T>() + r * width;
        const T* log_p = y.data<T>() + r * width;
        T* to = dx.data<T>() + r * width;
        if (row_max(log_p, width) == -std::numeric_limits<C>::infinity() && row_sum(log_p, width) == -std::numeric_limits<C>::infinity()) {
          write_row(to, width, accumulate, [&](int64_t) { return C(0); });
          continue;
        }
        const C sum = row_sum(g, width);
        write_row(to, width, accumulate, [&](int64_t i) { return static_cast<C>(g[i]) - exp_flushed(static_cast<C>(log_p[i])) * sum; });
      }
    });
  }

  void logsumexp(const Tensor& x, Tensor& y) override {
    check_column("logsumexp", x, y);
    for_rows("logsumexp", x, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      alignas(64) compute_t<T> scratch[kSoftmaxBlock];
      for (int64_t r = begin; r < end; ++r)
        y.data<T>()[r] = static_cast<T>(row_stats(x.data<T>() + r * x.size(1), x.size(1), scratch).log_sum_exp());
    });
  }

  void logsumexp_backward(const Tensor& grad, const Tensor& x, const Tensor& y, Tensor& dx, bool accumulate) override {
    check_matrix("logsumexp backward", x, dx);
    check_column("logsumexp backward", x, grad);
    check_column("logsumexp backward", x, y);
    for_rows("logsumexp backward", x, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = x.size(1);
      for (int64_t r = begin; r < end; ++r) {
        const T* from = x.data<T>() + r * width;
        const C lse = static_cast<C>(y.data<T>()[r]);
        const bool masked = lse == -std::numeric_limits<C>::infinity();
        const C g = masked ? C(0) : static_cast<C>(grad.data<T>()[r]);
        const C origin = masked ? C(0) : lse;
        write_row(dx.data<T>() + r * width, width, accumulate,
                  [&](int64_t i) { return g * exp_flushed(static_cast<C>(from[i]) - origin); });
      }
    });
  }

  CrossEntropySum cross_entropy(const Tensor& logits, const Tensor& targets, int64_t ignore_index, int64_t first_row,
                                Tensor& lse) override {
    check_targets(logits, targets, lse);
    const int64_t rows = logits.size(0);
    const int64_t width = logits.size(1);
    const Tensor losses = Tensor::empty({rows}, DType::f64, Category::workspace, "cross entropy of rows");
    double* __restrict loss = losses.data<double>();
    const auto target = indices(targets);
    CrossEntropySum total;
    if (dry_run()) {
      total.count = rows;
      return total;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = target(r);
      RZ_CHECK(t == ignore_index || (0 <= t && t < width),
               "cross entropy: target {} at position {} is outside [0, {}) and is not the ignored {}", t, first_row + r, width,
               ignore_index);
      if (t != ignore_index) ++total.count;
    }
    for_rows("cross entropy", logits, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      alignas(64) C scratch[kSoftmaxBlock];
      for (int64_t r = begin; r < end; ++r) {
        const int64_t t = target(r);
        loss[r] = 0;
        lse.data<C>()[r] = 0;
        if (t == ignore_index) continue;
        const T* row = logits.data<T>() + r * width;
        const RowStats<C> stats = row_stats(row, width, scratch);
        lse.data<C>()[r] = stats.log_sum_exp();
        // Not by lse, which has few digits where max is large.
        loss[r] = static_cast<double>(stats.max) - static_cast<double>(static_cast<C>(row[t])) + static_cast<double>(math::log(stats.sum));
      }
    });
    for (int64_t r = 0; r < rows; ++r) total.sum += loss[r];
    return total;
  }

  void cross_entropy_backward(const Tensor& logits, const Tensor& targets, const Tensor& lse, int64_t ignore_index, double scale,
                              Tensor& dlogits, bool accumulate) override {
    check_targets(logits, targets, lse);
    check_matrix("cross entropy backward", logits, dlogits);
    const auto target = indices(targets);
    for_rows("cross entropy backward", logits, [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t width = logits.size(1);
      const C factor = static_cast<C>(scale);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t t = target(r);
        T* to = dlogits.data<T>() + r * width;
        if (t == ignore_index) {
          if (!accumulate) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(width) * sizeof(T));
          continue;
        }
        const T* from = logits.data<T>() + r * width;
        const C value = lse.data<C>()[r];
        const C hit = static_cast<C>(from[t]);
        const C before = accumulate ? static_cast<C>(to[t]) : C(0);
        // `to` may be `from`: element i is read before it is written, and the target's two numbers were read above.
        if (accumulate)
          for (int64_t i = 0; i < width; ++i)
            to[i] = static_cast<T>(static_cast<C>(to[i]) + factor * exp_flushed(static_cast<C>(from[i]) - value));
        else if (to == from)
          for (int64_t i = 0; i < width; ++i) to[i] = static_cast<T>(factor * exp_flushed(static_cast<C>(to[i]) - value));
        else
          write_row(to, width, false, [&](int64_t i) { return factor * exp_flushed(static_cast<C>(from[i]) - value); });
        to[t] = static_cast<T>(before + factor * (exp_flushed(hit - value) - C(1)));
      }
    });
  }

 private:
  static void check_targets(const Tensor& logits, const Tensor& targets, const Tensor& lse) {
    RZ_CHECK(logits.rank() == 2 && logits.is_contiguous(), "cross entropy: the logits {} must be a contiguous matrix", logits.str());
    check_column("cross entropy", logits, targets);
    check_column("cross entropy", logits, lse);
  }
};

}  // namespace

LossKernels& loss_kernels() {
  static CpuLossKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
