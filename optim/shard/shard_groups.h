// Hybrid sharding: who shares shards with whom. Ranks stand in groups of k neighbours; each group holds one copy of the sharded
// state, cut into k shards. Zhao et al. 2023, "PyTorch FSDP" (arXiv 2304.11277), section 3.2.2.
//
//   inner    the ranks of one group, numbered from 0: weights are gathered and gradients reduce-scattered among them.
//   across   the ranks that hold the same shard, one of each group: they all-reduce its gradient.
// One group of all ranks is plain ZeRO: `inner` is the job's communicator and nothing happens across.
#pragma once

#include <cstdint>
#include <optional>

#include "comm/communicator.h"

namespace rz::optim {

class ShardGroups {
 public:
  // group_size 0: all ranks. ConfigError unless it divides their number. `comm` must outlive it. COLLECTIVE when there are several groups.
  ShardGroups(comm::Communicator& comm, int64_t group_size);

  comm::Communicator& inner() { return inner_ ? *inner_ : comm_; }
  int groups() const { return groups_; }
  // Only where groups() > 1.
  comm::Communicator& across() { return *across_; }
  // Whether this rank's group speaks for all: it saves checkpoints and contributes sums over shards.
  bool first() const { return group_ == 0; }

  // Sums `full` (`elements` of them, a multiple of the group's size) over all ranks. `own` gets this rank's shard; it may be its
  // place in `full`. With `whole`, `own` is that place and `full` becomes the whole sum; otherwise its contents are destroyed.
  // The work is done when everything is. COLLECTIVE.
  comm::Work reduce(void* full, void* own, size_t elements, DType dtype, bool whole, comm::CollectiveOptions options);

 private:
  comm::Communicator& comm_;
  std::optional<comm::Communicator> inner_;
  std::optional<comm::Communicator> across_;
  int groups_ = 1;
  int group_ = 0;
};

}  // namespace rz::optim
