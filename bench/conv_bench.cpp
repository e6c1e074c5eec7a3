// Convolutions of small images: GFLOP/s of forward, data gradient and weight gradient, the part of the multiply-add peak, and the part
// of what the matrix product of the same size (images already unfolded, the unfolding not counted) reaches in the same run. By CPU time
// of one thread: shared machines take their share of the other.
// pass: 0 forward, 1 data gradient, 2 weight gradient.
#include <time.h>

#include <algorithm>

#include "bench/machine.h"
#include "runtime/kernels/backend.h"

namespace rz::bench {
namespace {

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double seconds_of_product(int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b) {
  const Tensor a = random_tensor(transpose_a ? Shape{k, m} : Shape{m, k}), b = random_tensor(transpose_b ? Shape{n, k} : Shape{k, n});
  Tensor out = Tensor::empty({m, n});
  double best = 1e30;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const double start = cpu_seconds();
    backend({}).matmul->matmul(a, b, out, {.transpose_a = transpose_a, .transpose_b = transpose_b});
    best = std::min(best, cpu_seconds() - start);
  }
  return best;
}

void convolution(benchmark::State& state) {
  const int64_t images = state.range(0), extent = state.range(1), in = state.range(2), out = state.range(3), kernel = state.range(4),
                stride = state.range(5), pass = state.range(6);
  const ConvWindow window{stride, kernel / 2};
  const int64_t out_extent = window.output_extent(extent, kernel);
  Tensor x = random_tensor({images, extent, extent, in}), weight = random_tensor({out, kernel, kernel, in});
  Tensor y = random_tensor({images, out_extent, out_extent, out});
  ConvKernels& kernels = *backend({}).conv;
  for (auto _ : state) {
    if (pass == 0) kernels.forward(x, weight, {}, window, ConvActivation::none, y);
    if (pass == 1) kernels.data_gradient(y, weight, window, x, false);
    if (pass == 2) kernels.weight_gradient(y, x, window, weight, false);
  }
  const int64_t pixels = images * out_extent * out_extent, depth = kernel * kernel * in;
  const double flops = 2.0 * static_cast<double>(pixels * depth * out);
  report_flops(state, flops, 1);
  const double product = pass == 0   ? seconds_of_product(pixels, out, depth, false, true)
                         : pass == 1 ? seconds_of_product(pixels, depth, out, false, false)
                                     : seconds_of_product(out, depth, pixels, true, false);
  state.counters["of_product"] = benchmark::Counter(product * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N", "HW", "I", "O", "K", "stride", "pass"})->Unit(benchmark::kMicrosecond);
  const int64_t sizes[][6] = {{32, 32, 64, 64, 3, 1},  {32, 16, 128, 128, 3, 1}, {32, 16, 256, 128, 3, 1}, {32, 8, 128, 128, 3, 1},
                              {64, 28, 32, 32, 3, 1},  {32, 28, 64, 64, 3, 1},   {64, 14, 32, 32, 3, 1},   {64, 14, 64, 64, 3, 1},
                              {64, 14, 128, 64, 3, 1}, {64, 7, 64, 64, 3, 1},    {64, 7, 128, 128, 3, 1},  {64, 14, 48, 48, 3, 1},
                              {64, 28, 32, 32, 3, 2},  {64, 14, 64, 64, 3, 2},   {64, 14, 32, 32, 5, 1},   {64, 28, 1, 32, 3, 1},
                              {64, 28, 32, 1, 3, 1}};
  for (const auto& s : sizes)
    for (const int64_t pass : {0, 1, 2}) b->Args({s[0], s[1], s[2], s[3], s[4], s[5], pass});
}
BENCHMARK(convolution)->Apply(shapes);

}  // namespace
}  // namespace rz::bench
