// Matrix products at the shapes of Transformer training: GFLOP/s and the part of this machine's multiply-add peak, on one and two
// threads. Layout: 0 = a b^T (forward, weight [out, in]), 1 = a b (input gradient), 2 = a^T b (weight gradient). Sets: operands that take
// turns, as those of the layers do in training: with many, none is in a cache any more when its turn comes.
#include <vector>

#include "bench/machine.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"

namespace rz::bench {
namespace {

void product(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2), layout = state.range(3), batch = state.range(4);
  const int threads = static_cast<int>(state.range(5));
  struct Operands {
    Tensor a, b, out;
  };
  const auto context = RankContext::make(0, threads);
  const RankContextScope scope(context);
  const bool transpose_a = layout == 2, transpose_b = layout == 0;
  std::vector<Operands> sets(static_cast<size_t>(state.range(6)));
  for (Operands& set : sets)
    set = {random_tensor(transpose_a ? Shape{batch, k, m} : Shape{batch, m, k}),
           random_tensor(transpose_b ? Shape{batch, n, k} : Shape{batch, k, n}), Tensor::zeros({batch, m, n})};
  // Weight gradients are added in place, as in training.
  const MatmulOptions options{.transpose_a = transpose_a, .transpose_b = transpose_b, .accumulate = layout == 2};
  size_t turn = 0;
  for (auto _ : state) {
    Operands& set = sets[turn++ % sets.size()];
    backend({}).matmul->matmul(set.a, set.b, set.out, options);
  }
  report_flops(state, 2.0 * static_cast<double>(batch * m * n * k), threads);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k", "layout", "batch", "threads", "sets"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  const int64_t rows[][5] = {{768, 512, 128, 0, 1},    {768, 128, 512, 0, 1},   {2048, 1536, 384, 0, 1}, {2048, 384, 1536, 0, 1},
                             {2048, 384, 1536, 1, 1},  {384, 1536, 2048, 2, 1}, {1536, 384, 2048, 2, 1}, {1024, 256, 2048, 2, 1},
                             {1024, 1024, 1024, 1, 1}, {256, 50257, 768, 0, 1}, {64, 64, 64, 0, 48},     {256, 256, 64, 0, 48},
                             {256, 64, 256, 1, 48},    {1, 1536, 384, 0, 1}};
  for (const int threads : {1, 2})
    for (const auto& row : rows)
      for (const int64_t sets : {1, 12})
        if (sets == 1 || row[0] * row[1] * row[2] > 1 << 30) b->Args({row[0], row[1], row[2], row[3], row[4], threads, sets});
}
BENCHMARK(product)->Apply(shapes);

}  // namespace
}  // namespace rz::bench
