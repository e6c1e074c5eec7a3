// How the calling rank computes: its threads and its products.
#pragma once

#include "comm/communicator.h"
#include "proto/job.pb.h"

namespace rz::tools {

// Compute threads of this rank: `threads`, or where that is 0 the machine's cores over the ranks on it, at least one.
void set_threads(int threads, const comm::Communicator& comm);

// As the job has it multiply matrices: in tile registers where there are any, or not (training.products).
void set_products(const ringzero::Job& job);

// Both, for a job that is trained.
void set_compute(const ringzero::Job& job, const comm::Communicator& comm);

// "tile registers" or "multiply-adds": how this rank multiplies matrices.
const char* products_name();

}  // namespace rz::tools
