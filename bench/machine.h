// The limits of the machine at hand, measured in the run that quotes them: speed of shared machines drifts by tens of percent.
#pragma once

#include <benchmark/benchmark.h>

#include "runtime/core/tensor.h"

namespace rz::bench {

// Fused multiply-adds of float32 in registers, in GFLOP/s on `threads` threads: no kernel can exceed it. Measured for a few
// milliseconds at each call; the best of the calls so far.
double multiply_add_peak(int threads);

// Adds "GFLOP/s", and "of_peak" = its part of multiply_add_peak(threads).
void report_flops(benchmark::State& state, double flops_per_iteration, int threads);
// Adds "GB/s": bytes read and written.
void report_bytes(benchmark::State& state, double bytes_per_iteration);

// Uniform in [-1, 1), in the given type.
Tensor random_tensor(Shape shape, DType dtype = DType::f32);

}  // namespace rz::bench
