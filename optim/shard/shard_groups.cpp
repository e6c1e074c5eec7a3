#include "optim/shard/shard_groups.h"

namespace rz::optim {

ShardGroups::ShardGroups(comm::Communicator& comm, int64_t group_size) : comm_(comm) {
  const int64_t size = group_size == 0 ? comm.size() : group_size;
  RZ_CONFIG_CHECK(size >= 1 && comm.size() % size == 0,
                  "groups of {} do not divide {} ranks; sharding.group_size must be 0 (all ranks) or a divisor of their number", size,
                  comm.size());
  groups_ = static_cast<int>(comm.size() / size);
  if (groups_ == 1) return;
  group_ = static_cast<int>(comm.rank() / size);
  inner_ = comm.split(group_, [size](int rank) { return static_cast<int>(rank / size); });
  across_ = comm.split(static_cast<int>(comm.rank() % size), [size](int rank) { return static_cast<int>(rank % size); });
}

comm::Work ShardGroups::reduce(void* full, void* own, size_t elements, DType dtype, bool whole, comm::CollectiveOptions options) {
  if (whole && groups_ == 1) return comm_.all_reduce(full, elements, dtype, comm::ReduceOp::sum, options);
  // Operations of a rank run one after the other in order of issue, so each finds the result of the one before it.
  comm::Work work = inner().reduce_scatter(full, own, elements, dtype, comm::ReduceOp::sum, options);
  if (groups_ == 1) return work;
  work = across_->all_reduce(own, elements / static_cast<size_t>(inner().size()), dtype, comm::ReduceOp::sum, options);
  // All-reducing the whole across groups instead would add the same numbers in another order than where only shards are kept.
  if (whole) work = inner().all_gather(own, full, elements, dtype, options);
  return work;
}

}  // namespace rz::optim
