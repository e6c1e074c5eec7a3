#include "bench/machine.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <vector>

#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/gemm_micro.h"

namespace rz::bench {

namespace {

double peak_of_one_thread() {
  using V = cpu::Vector<float>::type;
  constexpr int kSums = 10;
  constexpr int kRepeats = 200000;
  V sums[kSums] = {};
  V a = V{} + 0.999f, b = V{} + 1e-6f;
  benchmark::DoNotOptimize(a);
  benchmark::DoNotOptimize(b);
  const auto start = std::chrono::steady_clock::now();
  for (int r = 0; r < kRepeats; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
  for (V& sum : sums) benchmark::DoNotOptimize(sum);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return 1e-9 * 2.0 * kSums * cpu::kLanes<float> * kRepeats / seconds;
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

void report_flops(benchmark::State& state, double flops_per_iteration, int threads) {
  const double total = 1e-9 * flops_per_iteration * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(total, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(total / multiply_add_peak(threads), benchmark::Counter::kIsRate);
}

void report_bytes(benchmark::State& state, double bytes_per_iteration) {
  state.counters["GB/s"] =
      benchmark::Counter(1e-9 * bytes_per_iteration * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

Tensor random_tensor(Shape shape, DType dtype) {
  Tensor t = Tensor::empty(shape);
  const Random random(1, "bench");
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = 2 * random.uniform(static_cast<uint64_t>(i)) - 1;
  Tensor out = Tensor::empty(shape, dtype);
  backend({}).elementwise->copy(t, out);
  return out;
}

}  // namespace rz::bench
