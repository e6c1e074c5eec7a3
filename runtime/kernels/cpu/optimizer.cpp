// Fused optimizer updates on the CPU: plain loops that the compiler vectorizes; one memory pass each.
#include "runtime/kernels/optimizer.h"

#include <cmath>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrain = 16384;

void check_flat(const char* what, const Tensor& weight, const Tensor& other) {
  RZ_CHECK(other.numel() == weight.numel() && other.is_contiguous() && weight.is_contiguous(), "{}: {} does not match {}", what, other.str(),
           weight.str());
}

class CpuOptimizerKernels final : public OptimizerKernels {
 public:
  void adam(const AdamStep& s, Tensor& weight, const Tensor& grad, Tensor& first, Tensor& second) override {
    for (const Tensor* t : {&grad, static_cast<const Tensor*>(&first), static_cast<const Tensor*>(&second)}) check_flat("adam", weight, *t);
    float* __restrict w = weight.data<float>();
    const float* __restrict g = grad.data<float>();
    float* __restrict m = first.data<float>();
    float* __restrict v = second.data<float>();
    const float inverse1 = 1.0f / s.bias_correction1;
    const float inverse2 = 1.0f / s.bias_correction2;
    const float coupled = s.decoupled ? 0.0f : s.weight_decay;
    const float shrink = s.decoupled ? s.learning_rate * s.weight_decay : 0.0f;
    parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float gi = g[i] * s.gradient_scale + coupled * w[i];
        const float mi = s.beta1 * m[i] + (1.0f - s.beta1) * gi;
        const float vi = s.beta2 * v[i] + (1.0f - s.beta2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] - shrink * w[i] - s.learning_rate * (mi * inverse1) / (std::sqrt(vi * inverse2) + s.epsilon);
      }
    });
    weight.bump_version();
  }

  void sgd(const SgdStep& s, Tensor& weight, const Tensor& grad, Tensor& momentum) override {
    check_flat("sgd", weight, grad);
    float* __restrict w = weight.data<float>();
    const float* __restrict g = grad.data<float>();
    if (s.momentum == 0) {
      parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) w[i] -= s.learning_rate * (g[i] * s.gradient_scale + s.weight_decay * w[i]);
      });
    } else {
      check_flat("sgd", weight, momentum);
      float* __restrict m = momentum.data<float>();
      const float ahead = s.nesterov ? s.momentum : 0.0f;
      parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float gi = g[i] * s.gradient_scale + s.weight_decay * w[i];
          const float mi = s.momentum * m[i] + gi;
          m[i] = mi;
          w[i] -= s.learning_rate * (s.nesterov ? gi + ahead * mi : mi);
        }
      });
    }
    weight.bump_version();
  }

  void ema(float decay, Tensor& average, const Tensor& weight) override {
    check_flat("ema", weight, average);
    float* __restrict a = average.data<float>();
    const float* __restrict w = weight.data<float>();
    parallel_for(weight.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) a[i] = decay * a[i] + (1.0f - decay) * w[i];
    });
  }

  double sum_of_squares(const Tensor& x) override {
    if (dry_run()) return 0;
    constexpr int64_t kBlock = 8192;
    constexpr int kLanes = 16;
    const float* p = x.data<float>();
    RZ_CHECK(x.is_contiguous(), "sum_of_squares needs a contiguous tensor, got {}", x.str());
    const int64_t n = x.numel();
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    std::vector<double> partial(static_cast<size_t>(blocks));
    parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        double lanes[kLanes] = {};
        const int64_t stop = std::min(n, (b + 1) * kBlock);
        int64_t i = b * kBlock;
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
