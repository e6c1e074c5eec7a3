// Elementwise kernels: GB/s of memory read and written. 64 Ki elements stay in the L2 cache, 8 Mi do not. Type: 0 = f32, 1 = bf16.
#include "bench/machine.h"
#include "runtime/kernels/backend.h"

namespace rz::bench {
namespace {

ElementwiseKernels& kernels() { return *backend({}).elementwise; }
DType type_of(const benchmark::State& state) { return state.range(1) == 0 ? DType::f32 : DType::bf16; }
double bytes_of(const benchmark::State& state, int tensors) {
  return static_cast<double>(tensors) * static_cast<double>(state.range(0)) * static_cast<double>(size_bytes(type_of(state)));
}

void unary(benchmark::State& state, UnaryOp op) {
  const Tensor x = random_tensor({state.range(0)}, type_of(state));
  Tensor y = Tensor::empty(x.shape(), x.dtype());
  for (auto _ : state) kernels().unary(op, x, y);
  report_bytes(state, bytes_of(state, 2));
}

void unary_gradient(benchmark::State& state, UnaryOp op) {
  const Tensor x = random_tensor({state.range(0)}, type_of(state)), g = random_tensor({state.range(0)}, type_of(state));
  Tensor out = Tensor::empty(x.shape(), x.dtype());
  for (auto _ : state) kernels().unary_gradient(op, g, x, out, false);
  report_bytes(state, bytes_of(state, 3));
}

void binary(benchmark::State& state, BinaryOp op) {
  const Tensor a = random_tensor({state.range(0)}, type_of(state)), b = random_tensor({state.range(0)}, type_of(state));
  Tensor out = Tensor::empty(a.shape(), a.dtype());
  for (auto _ : state) kernels().binary(op, a, b, out);
  report_bytes(state, bytes_of(state, 3));
}

// A bias along rows of 512.
void bias(benchmark::State& state, BinaryOp op) {
  const Tensor a = random_tensor({state.range(0) / 512, 512}, type_of(state)), b = random_tensor({512}, type_of(state));
  Tensor out = Tensor::empty(a.shape(), a.dtype());
  for (auto _ : state) kernels().binary(op, a, b, out);
  report_bytes(state, bytes_of(state, 2));
}

void accumulate(benchmark::State& state) {
  const Tensor x = random_tensor({state.range(0)}, type_of(state));
  Tensor sum = Tensor::zeros(x.shape());
  for (auto _ : state) kernels().add_into(x, sum, true);
  report_bytes(state, bytes_of(state, 1) + 8.0 * static_cast<double>(state.range(0)));
}

// [B, T, H, D] -> [B, H, T, D] with D = 64, and the transpose of a matrix.
void heads_first(benchmark::State& state) {
  const Tensor x = random_tensor({4, state.range(0) / (4 * 8 * 64), 8, 64}, type_of(state));
  Tensor out = Tensor::empty(x.view_transpose(1, 2).shape(), x.dtype());
  for (auto _ : state) kernels().copy(x.view_transpose(1, 2), out);
  report_bytes(state, bytes_of(state, 2));
}
void transpose(benchmark::State& state) {
  const Tensor x = random_tensor({state.range(0) / 256, 256}, type_of(state));
  Tensor out = Tensor::empty(x.view_transpose(0, 1).shape(), x.dtype());
  for (auto _ : state) kernels().copy(x.view_transpose(0, 1), out);
  report_bytes(state, bytes_of(state, 2));
}
void copy(benchmark::State& state) {
  const Tensor x = random_tensor({state.range(0)}, type_of(state));
  Tensor out = Tensor::empty(x.shape(), x.dtype());
  for (auto _ : state) kernels().copy(x, out);
  report_bytes(state, bytes_of(state, 2));
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "type"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  for (const int64_t type : {0, 1})
    for (const int64_t n : {1 << 16, 1 << 23}) b->Args({n, type});
}

BENCHMARK(copy)->Apply(sizes);
BENCHMARK(heads_first)->Apply(sizes);
BENCHMARK(transpose)->Apply(sizes);
BENCHMARK(accumulate)->Apply(sizes);
BENCHMARK_CAPTURE(binary, add, BinaryOp::add)->Apply(sizes);
BENCHMARK_CAPTURE(binary, silu_mul, BinaryOp::silu_mul)->Apply(sizes);
BENCHMARK_CAPTURE(bias, add, BinaryOp::add)->Apply(sizes);
BENCHMARK_CAPTURE(bias, bias_gelu, BinaryOp::bias_gelu)->Apply(sizes);
BENCHMARK_CAPTURE(unary, relu, UnaryOp::relu)->Apply(sizes);
BENCHMARK_CAPTURE(unary, exp, UnaryOp::exp)->Apply(sizes);
BENCHMARK_CAPTURE(unary, tanh, UnaryOp::tanh)->Apply(sizes);
BENCHMARK_CAPTURE(unary, gelu, UnaryOp::gelu)->Apply(sizes);
BENCHMARK_CAPTURE(unary_gradient, gelu, UnaryOp::gelu)->Apply(sizes);

}  // namespace
}  // namespace rz::bench
