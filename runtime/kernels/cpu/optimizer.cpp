// Fused optimizer updates on the CPU: plain loops that the compiler vectorizes; one memory pass each.
#include "runtime/kernels/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/convert.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrain = 16384;

void check_flat(const char* what, const Tensor& weight, const Tensor& other) {
  RZ_CHECK(other.numel() == weight.numel() && other.is_contiguous() && weight.is_contiguous(), "{}: {} does not match {}", what,
           other.str(), weight.str());
}

void load_run_of(const Tensor& t, int64_t begin, float* to, int64_t count) {
  dispatch_floating(t.dtype(), "optimizer", [&](auto tag) {
    using T = typename decltype(tag)::type;
    load_run(t.data<T>() + begin, 1, to, count);
  });
}

// Calls update(gradient, begin, count) over runs of the range, with the gradient as float32, and rounds the weights of each run
// while they are in the cache. All float32: one run per thread, without copies. `update` holds its constants by value.
template <class Update>
void for_runs(Tensor& weight, const Tensor& grad, const Tensor& rounded, const Update& update) {
  constexpr int64_t kRun = 1024;
  float* const w = weight.data<float>();
  const bool convert_grad = grad.dtype() != DType::f32;
  parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) float wide[kRun];
    const Update own = update;  // which no store of a float can reach: its constants stay in registers, and its loop becomes vectors
    const int64_t step = convert_grad || rounded.defined() ? kRun : end - begin;
    for (int64_t at = begin; at < end; at += step) {
      const int64_t count = std::min(step, end - at);
      if (convert_grad) load_run_of(grad, at, wide, count);
      own(convert_grad ? wide : grad.data<float>() + at, at, count);
      if (!rounded.defined()) continue;
      dispatch_floating(rounded.dtype(), "optimizer", [&](auto tag) {
        using T = typename decltype(tag)::type;
        store_run(w + at, rounded.data<T>() + at, 1, count, false);
      });
    }
  });
  weight.bump_version();
  if (Tensor copy = rounded; copy.defined()) copy.bump_version();
}

class CpuOptimizerKernels final : public OptimizerKernels {
 public:
  void adam(const AdamStep& s, Tensor& weight, const Tensor& grad, Tensor& first, Tensor& second, const Tensor& rounded) override {
    for (const Tensor* t : {&grad, static_cast<const Tensor*>(&first), static_cast<const Tensor*>(&second)}) check_flat("adam", weight, *t);
    if (rounded.defined()) check_flat("adam", weight, rounded);
    const float inverse1 = 1.0f / s.bias_correction1;
    const float inverse2 = 1.0f / s.bias_correction2;
    const float coupled = s.decoupled ? 0.0f : s.weight_decay;
    const float shrink = s.decoupled ? s.learning_rate * s.weight_decay : 0.0f;
    float* const weights = weight.data<float>();
    float* const firsts = first.data<float>();
    float* const seconds = second.data<float>();
    for_runs(weight, grad, rounded, [=](const float* __restrict g, int64_t begin, int64_t count) {
      float* __restrict w = weights + begin;
      float* __restrict m = firsts + begin;
      float* __restrict v = seconds + begin;
      for (int64_t i = 0; i < count; ++i) {
        const float gi = g[i] * s.gradient_scale + coupled * w[i];
        const float mi = s.beta1 * m[i] + (1.0f - s.beta1) * gi;
        const float vi = s.beta2 * v[i] + (1.0f - s.beta2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] - shrink * w[i] - s.learning_rate * (mi * inverse1) / (std::sqrt(vi * inverse2) + s.epsilon);
      }
    });
  }

  void sgd(const SgdStep& s, Tensor& weight, const Tensor& grad, Tensor& momentum, const Tensor& rounded) override {
    check_flat("sgd", weight, grad);
    if (rounded.defined()) check_flat("sgd", weight, rounded);
    float* const weights = weight.data<float>();
    if (s.momentum == 0) {
      for_runs(weight, grad, rounded, [=](const float* __restrict g, int64_t begin, int64_t count) {
        float* __restrict w = weights + begin;
        for (int64_t i = 0; i < count; ++i) w[i] -= s.learning_rate * (g[i] * s.gradient_scale + s.weight_decay * w[i]);
      });
      return;
    }
    check_flat("sgd", weight, momentum);
    float* const momenta = momentum.data<float>();
    const float ahead = s.nesterov ? s.momentum : 0.0f;
    for_runs(weight, grad, rounded, [=](const float* __restrict g, int64_t begin, int64_t count) {
      float* __restrict w = weights + begin;
      float* __restrict m = momenta + begin;
      for (int64_t i = 0; i < count; ++i) {
        const float gi = g[i] * s.gradient_scale + s.weight_decay * w[i];
        const float mi = s.momentum * m[i] + gi;
        m[i] = mi;
        w[i] -= s.learning_rate * (s.nesterov ? gi + ahead * mi : mi);
      }
    });
  }

  void ema(float decay, Tensor& average, const Tensor& weight) override {
    check_flat("ema", weight, average);
    float* const averages = average.data<float>();
    const float* const weights = weight.data<float>();
    parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
      float* __restrict a = averages;
      const float* __restrict w = weights;
      const float keep = decay;
      for (int64_t i = begin; i < end; ++i) a[i] = keep * a[i] + (1.0f - keep) * w[i];
    });
  }

  double sum_of_squares(const Tensor& x) override {
    if (dry_run()) return 0;
    constexpr int64_t kBlock = 8192;
    constexpr int kLanes = 16;
    RZ_CHECK(x.is_contiguous(), "sum_of_squares needs a contiguous tensor, got {}", x.str());
    const bool convert = x.dtype() != DType::f32;
    const float* const data = convert ? nullptr : x.data<float>();
    const int64_t n = x.numel();
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    std::vector<double> partial(static_cast<size_t>(blocks));
    parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
      alignas(64) float wide[kBlock];
      for (int64_t b = begin; b < end; ++b) {
        double lanes[kLanes] = {};
        const int64_t stop = std::min(kBlock, n - b * kBlock);
        if (convert) load_run_of(x, b * kBlock, wide, stop);
        const float* p = convert ? wide : data + b * kBlock;
        int64_t i = 0;
        for (; i + kLanes <= stop; i += kLanes)
          for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(p[i + l]) * static_cast<double>(p[i + l]);
        double sum = 0;
        for (double lane : lanes) sum += lane;
        for (; i < stop; ++i) sum += static_cast<double>(p[i]) * static_cast<double>(p[i]);
        partial[static_cast<size_t>(b)] = sum;
      }
    });
    double total = 0;
    for (double block : partial) total += block;
    return total;
  }
};

}  // namespace

OptimizerKernels& optimizer_kernels() {
  static CpuOptimizerKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
