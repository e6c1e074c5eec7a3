// Attention forward and backward: GFLOP/s (causal counts half the products) beside the machine's multiply-add peak, one thread.
// Legend: B batch, H heads, T tokens, D head width.
#include <benchmark/benchmark.h>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "runtime/kernels/cpu/lanes.h"
#include "runtime/ops/attention.h"

namespace rz {
namespace {

Tensor random_tensor(Shape shape, const char* what) {
  Tensor t = Tensor::empty(shape);
  const Random random(1, what);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = 2 * random.uniform(static_cast<uint64_t>(i)) - 1;
  return t;
}

// Products of two matrices: 2 in forward, 5 in backward, each 2 T T D operations per head, half of them masked.
double gigaflops(const benchmark::State& state, int products) {
  const auto [batch, heads, tokens, width] = std::tuple(state.range(0), state.range(1), state.range(2), state.range(3));
  return 1e-9 * static_cast<double>(products * batch * heads * tokens * tokens * width);
}

void report(benchmark::State& state, int products) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(gigaflops(state, products) * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void forward(benchmark::State& state) {
  autograd::NoGrad no_grad;
  const Tensor qkv = random_tensor({state.range(0), state.range(2), 3 * state.range(1) * state.range(3)}, "qkv");
  const ops::AttentionQkvOptions options{.heads = state.range(1)};
  for (auto _ : state) benchmark::DoNotOptimize(ops::attention_qkv(qkv, options));
  report(state, 2);
}

void backward(benchmark::State& state) {
  Tensor qkv = random_tensor({state.range(0), state.range(2), 3 * state.range(1) * state.range(3)}, "qkv");
  autograd::set_requires_grad(qkv, true);
  const Tensor out = ops::attention_qkv(qkv, {.heads = state.range(1)});
  const Tensor grad = random_tensor(out.shape(), "grad");
  for (auto _ : state) {
    autograd::backward(out, {.grad = grad, .retain_graph = true});
    autograd::clear_grad(qkv);
  }
  report(state, 5);
}

// Independent multiply-adds in registers: what no kernel can exceed.
void peak(benchmark::State& state) {
  using Vector = cpu::Lanes<float>;
  constexpr int kSums = 10;
  Vector sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + 1e-3f * static_cast<float>(i);
  Vector a = Vector{} + 0.999f;
  Vector b = Vector{} + 1e-6f;
  benchmark::DoNotOptimize(a);
  benchmark::DoNotOptimize(b);
  constexpr int kRepeats = 10000;
  for (auto _ : state) {
    for (int r = 0; r < kRepeats; ++r)
#pragma GCC unroll 16
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
    for (int i = 0; i < kSums; ++i) benchmark::DoNotOptimize(sums[i]);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(1e-9 * kSums * static_cast<double>(cpu::kLanes<float>) * 2 * kRepeats * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"B", "H", "T", "D"})->Unit(benchmark::kMillisecond);
  for (const int64_t tokens : {64, 256, 1024}) b->Args({8, 6, tokens, 64});
  b->Args({8, 12, 256, 32})->Args({8, 3, 256, 128});
}

BENCHMARK(peak);
BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);

}  // namespace
}  // namespace rz
