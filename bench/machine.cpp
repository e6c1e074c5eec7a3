#include "bench/machine.h"

#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/peak.h"

namespace rz::bench {

void report_flops(benchmark::State& state, double flops_per_iteration, int threads) {
  const double total = 1e-9 * flops_per_iteration * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(total, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(total / cpu::multiply_add_peak(threads), benchmark::Counter::kIsRate);
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
