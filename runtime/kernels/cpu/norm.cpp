// Layer norm and RMS norm on the CPU: a row at a time; gradients of weight and bias in fixed blocks of rows.
#include "runtime/kernels/norm.h"

#include <cstring>

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/lanes.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 16384;

void check_rows(const char* what, const Tensor& x, const Tensor& other) {
  RZ_CHECK(x.rank() == 2 && x.is_contiguous() && other.is_contiguous() && other.shape() == x.shape() && other.dtype() == x.dtype(),
           "{}: {} and {} must be contiguous matrices of one shape and type", what, x.str(), other.str());
}

// Parameters in the compute type, `fill` throughout where they are undefined: rows are then handled by one loop without cases.
// Row i of x takes values at data + (i / rows_each) * width.
template <class C>
struct Parameters {
  Tensor values;
  int64_t rows_each = 0;

  Parameters(const Tensor& parameter, const Tensor& x, double fill) {
    const int64_t width = x.size(1);
    rows_each = std::max<int64_t>(1, x.size(0));
    if (!parameter.defined()) {
      values = Tensor::empty({width}, dtype_of<C>, Category::workspace, "norm parameter");
      if (!dry_run()) std::fill_n(values.data<C>(), width, static_cast<C>(fill));
      return;
    }
    const bool per_sample = parameter.rank() == 2 && parameter.size(0) >= 1 && x.size(0) % parameter.size(0) == 0;
    RZ_CHECK((parameter.rank() == 1 || per_sample) && parameter.size(-1) == width && parameter.is_contiguous(),
             "norm: a parameter {} does not fit rows of {}", parameter.str(), x.str());
    RZ_CHECK(parameter.dtype() == x.dtype() || parameter.dtype() == dtype_of<C>, "norm: a parameter {} does not fit the type of {}",
             parameter.str(), x.str());
    if (per_sample) rows_each = std::max<int64_t>(1, x.size(0) / parameter.size(0));
    values = parameter;
    if (parameter.dtype() == dtype_of<C>) return;
    values = Tensor::empty(parameter.shape(), dtype_of<C>, Category::workspace, "norm parameter");
    elementwise_kernels().copy(parameter, values);
  }

  const C* row(int64_t i) const { return values.template data<C>() + i / rows_each * values.size(-1); }
};

template <class T>
struct Forward {
  using C = compute_t<T>;
  int64_t width;
  C epsilon;

  // Returns (mean, rstd). Two passes: the variance of x - mean does not cancel for large means.
  std::pair<C, C> layer_row(const T* __restrict x, const C* __restrict weight, const C* __restrict bias, T* __restrict y) const {
    const C n = static_cast<C>(width);
    const C mean = row_sum(x, width) / n;
    const C variance = sum_lanes(x, x, width, [mean](auto v, auto) { return (v - mean) * (v - mean); }) / n;
    const C rstd = C(1) / math::sqrt(variance + epsilon);
    for (int64_t i = 0; i < width; ++i) y[i] = static_cast<T>((static_cast<C>(x[i]) - mean) * rstd * weight[i] + bias[i]);
    return {mean, rstd};
  }

  C rms_row(const T* __restrict x, const C* __restrict weight, const C* __restrict bias, T* __restrict y) const {
    const C square = sum_lanes(x, x, width, [](auto v, auto) { return v * v; }) / static_cast<C>(width);
    const C rstd = C(1) / math::sqrt(square + epsilon);
    for (int64_t i = 0; i < width; ++i) y[i] = static_cast<T>(static_cast<C>(x[i]) * rstd * weight[i] + bias[i]);
    return rstd;
  }
};

// With xhat = (x - mean) rstd and h = grad * weight:
//   layer norm  dx = rstd (h - mean(h) - xhat mean(h xhat))      RMS norm  dx = rstd (h - xhat mean(h xhat))
template <class T>
struct Backward {
  using C = compute_t<T>;
  int64_t width;
  bool centred;
  bool accumulate;

  void input_row(const T* __restrict grad, const T* __restrict x, const C* __restrict weight, C mean, C rstd, T* __restrict dx) const {
    C sum = 0;
    C dot = 0;
    // Both sums in one pass; lanes as in sum_lanes.
    constexpr int64_t kWide = kLanes<C>;
    Lanes<C> sums{};
    Lanes<C> dots{};
    int64_t i = 0;
    for (; i + kWide <= width; i += kWide) {
      const Lanes<C> h = load_lanes(grad + i) * load_lanes(weight + i);
      sums += h;
      dots += h * ((load_lanes(x + i) - mean) * rstd);
    }
    if (i < width) {
      const int64_t rest = width - i;
      const Lanes<C> h = load_lanes_partial(grad + i, rest, C(0)) * load_lanes_partial(weight + i, rest, C(0));
      sums += h;
      dots += h * ((load_lanes_partial(x + i, rest, C(0)) - mean) * rstd);
    }
    sum = centred ? fold_sum<C>(sums) / static_cast<C>(width) : C(0);
    dot = fold_sum<C>(dots) / static_cast<C>(width);
    const auto gradient = [&](int64_t k) {
      const C xhat = (static_cast<C>(x[k]) - mean) * rstd;
      return rstd * (static_cast<C>(grad[k]) * weight[k] - sum - xhat * dot);
    };
    if (accumulate)
      for (int64_t k = 0; k < width; ++k) dx[k] = static_cast<T>(static_cast<C>(dx[k]) + gradient(k));
    else
      for (int64_t k = 0; k < width; ++k) dx[k] = static_cast<T>(gradient(k));
  }

  void weight_row(const T* __restrict grad, const T* __restrict x, C mean, C rstd, C* __restrict dweight) const {
    for (int64_t i = 0; i < width; ++i) dweight[i] += static_cast<C>(grad[i]) * ((static_cast<C>(x[i]) - mean) * rstd);
  }

  void bias_row(const T* __restrict grad, C* __restrict dbias) const {
    for (int64_t i = 0; i < width; ++i) dbias[i] += static_cast<C>(grad[i]);
  }
};

class CpuNormKernels final : public NormKernels {
 public:
  void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, Tensor& y, Tensor& mean, Tensor& rstd) override {
    check_rows("norm", x, y);
    dispatch_floating(x.dtype(), "norm", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const Parameters<C> w(weight, x, 1);
      const Parameters<C> b(bias, x, 0);
      const int64_t width = x.size(1);
      const Forward<T> row{width, static_cast<C>(eps)};
      const T* from = x.data<T>();
      T* to = y.data<T>();
      C* r = rstd.data<C>();
      C* m = mean.defined() ? mean.data<C>() : nullptr;
      parallel_for(x.size(0), std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (m != nullptr)
            std::tie(m[i], r[i]) = row.layer_row(from + i * width, w.row(i), b.row(i), to + i * width);
          else
            r[i] = row.rms_row(from + i * width, w.row(i), b.row(i), to + i * width);
        }
      });
    });
  }

  void backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& rstd, Tensor& dx,
                bool accumulate, Tensor& weight_blocks, Tensor& bias_blocks) override {
    check_rows("norm backward", x, grad);
    if (dx.defined()) check_rows("norm backward", x, dx);
    dispatch_floating(x.dtype(), "norm backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const Parameters<C> w(weight, x, 1);
      const int64_t rows = x.size(0);
      const int64_t width = x.size(1);
      const int64_t blocks = w.values.rank() == 2 ? w.values.size(0) : norm_blocks(rows);
      const Backward<T> row{width, mean.defined(), accumulate};
      const T* g = grad.data<T>();
      const T* from = x.data<T>();
      const C* r = rstd.data<C>();
      const C* m = mean.defined() ? mean.data<C>() : nullptr;
      T* to = dx.defined() ? dx.data<T>() : nullptr;
      C* dw = block_data<C>(weight_blocks, blocks, width);
      C* db = block_data<C>(bias_blocks, blocks, width);
      const int64_t block_elements = std::max<int64_t>(1, rows / blocks * width);
      parallel_for(blocks, std::max<int64_t>(1, kGrainElements / block_elements), [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          if (dw != nullptr) std::fill_n(dw + b * width, width, C(0));
          if (db != nullptr) std::fill_n(db + b * width, width, C(0));
          for (int64_t i = rows * b / blocks; i < rows * (b + 1) / blocks; ++i) {
            const T* gi = g + i * width;
            const T* xi = from + i * width;
            const C mi = m != nullptr ? m[i] : C(0);
            if (to != nullptr) row.input_row(gi, xi, w.row(i), mi, r[i], to + i * width);
            if (dw != nullptr) row.weight_row(gi, xi, mi, r[i], dw + b * width);
            if (db != nullptr) row.bias_row(gi, db + b * width);
          }
        }
      });
    });
  }

  void add_blocks(const Tensor& blocks, Tensor& out, bool accumulate) override {
    const int64_t count = blocks.size(0);
    const int64_t width = blocks.size(1);
    RZ_CHECK(out.numel() == width && out.is_contiguous() && blocks.is_contiguous(), "norm: block sums {} do not fit {}", blocks.str(),
             out.str());
    dispatch_floating(out.dtype(), "norm", [&](auto tag) {
      using T = typename decltype(tag)::type;
      dispatch_floating(blocks.dtype(), "norm", [&](auto block_tag) {
        using C = typename decltype(block_tag)::type;
        if constexpr (std::is_same_v<C, float> || std::is_same_v<C, double>) {
          const C* from = blocks.data<C>();
          T* to = out.data<T>();
          parallel_for(width, 2048, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              C sum = 0;
              for (int64_t b = 0; b < count; ++b) sum += from[b * width + i];
              to[i] = static_cast<T>(static_cast<compute_t<T>>(accumulate ? static_cast<C>(static_cast<compute_t<T>>(to[i])) + sum : sum));
            }
          });
        }
      });
    });
  }

  void add_gated(const Tensor& x, const Tensor& h, const Tensor& gate, Tensor& y) override {
    check_rows("add_gated", x, h);
    check_rows("add_gated", x, y);
    dispatch_floating(x.dtype(), "add_gated", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const Parameters<C> gates(gate, x, 0);
      const int64_t width = x.size(1);
      const T* from = x.data<T>();
      const T* branch = h.data<T>();
      T* to = y.data<T>();
      parallel_for(x.size(0), std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* __restrict xi = from + i * width;
          const T* __restrict hi = branch + i * width;
          const C* __restrict w = gates.row(i);
          T* __restrict yi = to + i * width;
          for (int64_t k = 0; k < width; ++k) yi[k] = static_cast<T>(math::fma(static_cast<C>(hi[k]), w[k], static_cast<C>(xi[k])));
        }
      });
    });
  }

  void gate_backward(const Tensor& grad, const Tensor& h, const Tensor& gate, Tensor& dh, bool accumulate, Tensor& dgate) override {
    if (dgate.defined()) check_rows("gate backward", grad, h);
    if (dh.defined()) check_rows("gate backward", grad, dh);
    dispatch_floating(grad.dtype(), "gate backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const Parameters<C> gates(gate, grad, 0);
      const int64_t width = grad.size(1);
      const int64_t samples = dgate.defined() ? dgate.size(0) : gate.size(0);
      const int64_t rows = samples == 0 ? 0 : grad.size(0) / samples;
      const T* g = grad.data<T>();
      const T* branch = dgate.defined() ? h.data<T>() : nullptr;
      T* to = dh.defined() ? dh.data<T>() : nullptr;
      C* sums = block_data<C>(dgate, samples, width);
      parallel_for(samples, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, rows * width)), [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
          if (sums != nullptr) std::fill_n(sums + s * width, width, C(0));
          for (int64_t i = s * rows; i < (s + 1) * rows; ++i) {
            const T* gi = g + i * width;
            if (to != nullptr) gate_row(gi, gates.row(i), to + i * width, width, accumulate);
            if (sums != nullptr) dot_row(gi, branch + i * width, sums + s * width, width);
          }
        }
      });
    });
  }

 private:
  template <class T, class C>
  static void gate_row(const T* __restrict g, const C* __restrict gate, T* __restrict dh, int64_t width, bool accumulate) {
    if (accumulate)
      for (int64_t k = 0; k < width; ++k) dh[k] = static_cast<T>(static_cast<C>(dh[k]) + static_cast<C>(g[k]) * gate[k]);
    else
      for (int64_t k = 0; k < width; ++k) dh[k] = static_cast<T>(static_cast<C>(g[k]) * gate[k]);
  }

  template <class T, class C>
  static void dot_row(const T* __restrict g, const T* __restrict h, C* __restrict sums, int64_t width) {
    for (int64_t k = 0; k < width; ++k) sums[k] += static_cast<C>(g[k]) * static_cast<C>(h[k]);
  }

  template <class C>
  static C* block_data(const Tensor& t, int64_t blocks, int64_t width) {
    if (!t.defined()) return nullptr;
    RZ_CHECK(t.shape() == (Shape{blocks, width}) && t.is_contiguous(), "norm backward: block sums {} should be [{}, {}]", t.str(), blocks,
             width);
    return t.data<C>();
  }
};

}  // namespace

NormKernels& norm_kernels() {
  static CpuNormKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
