// Whole training steps, timed: how long, how close to what the machine can do, and where the time goes.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "proto/job.pb.h"

namespace rz::tools {

struct BenchOptions {
  int64_t warmup = 3;  // steps before those that count
  int64_t steps = 20;
  bool json = false;
};

// Runs warmup + steps training steps of the job (none is saved) and prints, on rank 0:
// * step_ms: median, 10th and 90th percentile, smallest, and (in JSON) each in its order; a step ends on all ranks together, by its own collectives;
// * processor_ms (in JSON): the same of the processor time of rank 0's main thread, which other processes on its core do not lengthen;
// * flops_per_step of all ranks: products of matrices, convolutions, attention without masked pairs; recomputation is not counted;
// * model_flop_utilization: flops_per_step over the median step, as a part of matmul_peak: products of 1024 x 1024, the best of five in a row,
//   measured before, between and after the steps with the same threads, of which the median; and of multiply_add_peak (kernels/cpu/peak.h);
// * products (in JSON): how matrices are multiplied, in "tile registers" or by "multiply-adds";
// * ops: rank 0's time by op and phase (core/op_profile.h), ms and GFLOP a step; its parts sum to the mean step;
// * memory: peak_bytes of the fullest rank, and how often the system was asked for memory in the counted steps.
// COLLECTIVE.
void bench(const ringzero::Job& job, const BenchOptions& options, comm::Communicator& comm);

}  // namespace rz::tools
