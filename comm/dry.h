// A communicator without a transport, for dry runs (runtime/core/rank_context.h): every operation is done at once, moves
// nothing, and is counted as messages would be. It holds the same scratch in the ledger as a real one. No threads.
//
// All ranks are taken to do the same: what other ranks would contribute reads as whatever this rank has.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "runtime/core/storage.h"

namespace rz::comm {

struct Fingerprint;
struct Pulse;

class Dry {
 public:
  Dry(int rank, int size, size_t segment_bytes);

  Work issue(const Fingerprint& operation, const Group& group);

  int rank() const { return rank_; }
  int size() const { return size_; }
  const WireStats& stats() const { return stats_; }
  size_t scratch_bytes() const { return scratch_->size_bytes(); }

 private:
  int rank_;
  int size_;
  size_t segment_bytes_;
  std::shared_ptr<Storage> scratch_;
  WireStats stats_;
  std::shared_ptr<const Pulse> pulse_;
};

// Rank `rank` of `size`, which may be any number. `segment_bytes` 0 = the default, as in LaunchOptions. Call it with the dry
// RankContext bound. split() on it needs every rank's colour.
Communicator make_dry_communicator(int rank, int size, size_t segment_bytes = 0);

}  // namespace rz::comm
