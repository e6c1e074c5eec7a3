// Reductions: GB/s of memory read.
#include "bench/machine.h"
#include "runtime/kernels/backend.h"

namespace rz::bench {
namespace {

// Rows (reduced: 1), columns (reduced: 0: the gradient of a bias) or everything (2).
void sum(benchmark::State& state, ReduceOp op) {
  const Tensor x = random_tensor({state.range(0), state.range(1)});
  const std::vector<int> dims = state.range(2) == 2 ? std::vector<int>{0, 1} : std::vector<int>{static_cast<int>(state.range(2))};
  Shape shape = x.shape();
  for (const int d : dims) shape = shape.with(d, 1);
  Tensor out = Tensor::empty(shape);
  for (auto _ : state) backend({}).reduction->reduce(op, x, dims, out);
  report_bytes(state, static_cast<double>(x.size_bytes()));
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "columns", "reduced"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{64, 512}, {2048, 1536}, {2048, 384}, {100000, 16}})
    for (const int64_t reduced : {0, 1, 2}) b->Args({rows, columns, reduced});
}
BENCHMARK_CAPTURE(sum, sum, ReduceOp::sum)->Apply(shapes);
BENCHMARK_CAPTURE(sum, max, ReduceOp::max)->Apply(shapes);

}  // namespace
}  // namespace rz::bench
