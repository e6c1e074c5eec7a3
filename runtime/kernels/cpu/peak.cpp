#include "runtime/kernels/cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/gemm_micro.h"

namespace rz::cpu {

namespace {

double peak_of_one_thread() {
  using V = Lanes<float>;
  constexpr int kSums = 10;
  constexpr int kRepeats = 200000;
  V sums[kSums] = {};
  V a = V{} + 0.999f, b = V{} + 1e-6f;
  asm volatile("" : "+m"(a), "+m"(b));
  const auto start = std::chrono::steady_clock::now();
  for (int r = 0; r < kRepeats; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
  asm volatile("" : : "m"(sums));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return 1e-9 * 2.0 * kSums * kLanes<float> * kRepeats / seconds;
}

}  // namespace

double multiply_add_peak(int threads) {
  static std::map<int, double> best;
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::vector<double> each(static_cast<size_t>(threads));
    std::vector<std::thread> workers;
    for (auto& result : each) workers.emplace_back([&result] { result = peak_of_one_thread(); });
    for (auto& worker : workers) worker.join();
    double sum = 0;
    for (const double one : each) sum += one;
    best[threads] = std::max(best[threads], sum);
  }
  return best[threads];
}

double matmul_peak() {
#ifdef RZ_SANITIZE
  constexpr int64_t kSide = 64;  // such a build's speed says nothing
#else
  constexpr int64_t kSide = 1024;
#endif
  const Tensor a = Tensor::full({kSide, kSide}, 0.5), b = Tensor::full({kSide, kSide}, 0.25);
  Tensor product = Tensor::empty({kSide, kSide});
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    matmul_kernels().matmul(a, b, product, {});
    best = std::max(best, 2e-9 * kSide * kSide * kSide / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace rz::cpu
