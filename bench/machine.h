// What the benchmarks share: their counters and inputs.
#pragma once

#include <benchmark/benchmark.h>

#include "runtime/core/tensor.h"

namespace rz::bench {

// Adds "GFLOP/s", and "of_peak" = its part of cpu::multiply_add_peak(threads).
void report_flops(benchmark::State& state, double flops_per_iteration, int threads);
// Adds "GB/s": bytes read and written.
void report_bytes(benchmark::State& state, double bytes_per_iteration);

// Uniform in [-1, 1), in the given type.
Tensor random_tensor(Shape shape, DType dtype = DType::f32);

}  // namespace rz::bench
