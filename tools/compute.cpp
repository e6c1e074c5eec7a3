#include "tools/compute.h"

#include <algorithm>
#include <thread>

#include "comm/launch.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/cpu/tile_registers.h"
#include "tools/console.h"

namespace rz::tools {

void set_threads(int threads, const comm::Communicator& comm) {
  const int here = comm::under_mpirun() ? ranks_on_this_machine() : comm.size();
  const int automatic = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / here);
  RankContext::current()->set_threads(threads > 0 ? threads : automatic);
}

void set_products(const ringzero::Job& job) { RankContext::current()->set_tiles(job.training().products() == ringzero::Training::AUTO); }

void set_compute(const ringzero::Job& job, const comm::Communicator& comm) {
  set_threads(static_cast<int>(job.training().threads()), comm);
  set_products(job);
}

const char* products_name() { return cpu::tiles_in_use() ? "tile registers" : "multiply-adds"; }

}  // namespace rz::tools
