#include "tools/launch_job.h"

#include "runtime/core/allocator.h"
#include "tools/session.h"

namespace rz::tools {

comm::LaunchOptions launch_options(const ringzero::Job& job) {
  const auto& c = job.communication();
  comm::LaunchOptions options;
  switch (c.transport()) {
    case ringzero::Communication::AUTO: break;
    case ringzero::Communication::THREADS: options.transport = comm::TransportKind::threads; break;
    case ringzero::Communication::MPI: options.transport = comm::TransportKind::mpi; break;
  }
  switch (c.intra_node()) {
    case ringzero::Communication::WHERE_POSSIBLE: break;
    case ringzero::Communication::SHARED: options.intra_node = comm::IntraNode::shared; break;
    case ringzero::Communication::MESSAGES: options.intra_node = comm::IntraNode::messages; break;
  }
  const bool threads = options.transport == comm::TransportKind::threads || !comm::under_mpirun();
  if (threads) options.ranks = static_cast<int>(c.ranks());
  options.deadline_s = c.deadline_s();
  options.network = network_of(job);
  options.fuzz_seed = job.experiment().fuzz_seed();
  allocator::set_poison(options.fuzz_seed != 0);
  return options;
}

}  // namespace rz::tools
