// Communicator: the collectives of a group of ranks, asynchronous, in order of issue, checked and bounded in time.
//
// It adds to the ring algorithms (comm/ring.h) over a transport (comm/transport.h): one progress thread per rank that runs
// operations first in, first out; a fingerprint of every operation, compared with the left neighbour's, so that ranks which
// disagree get an error naming both sides; a deadline on every wait, after which the error says who is missing.
// An error on one rank is an error on every rank of the job, at once, and for good: later operations fail with its text.
//
// Thread safety: on each rank one thread at a time issues operations, since their order must be the same on every rank.
// Destruction neither communicates nor throws; operations still running are given up and the other ranks are told.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "comm/error.h"
#include "comm/probe.h"
#include "comm/types.h"
#include "comm/wire_stats.h"
#include "comm/work.h"
#include "runtime/core/dtype.h"

namespace rz::comm {

class Dry;
class Progress;
struct Group;

struct CollectiveOptions {
  std::string_view name = {};  // for errors and traces, checked to be the same on all ranks; read during the call only
  Order order = Order::ring;
  // The caller waits for it next, with nothing to do meanwhile: among ranks that share memory it runs the operation itself, and no other
  // thread is woken. A hint: ranks may differ. Without wait() or done() the operation may stand still.
  bool at_once = false;
};

class Communicator {
 public:
  // Made by run_ranks (comm/launch.h) or split().
  Communicator(std::shared_ptr<Progress> progress, std::shared_ptr<Group> group);
  // Made by make_dry_communicator (comm/dry.h).
  Communicator(std::shared_ptr<Dry> dry, std::shared_ptr<Group> group);
  ~Communicator();
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;

  int rank() const;  // within this communicator's group
  int size() const;

  // All collectives: COLLECTIVE over the group, asynchronous; `count` in elements, any number including 0; buffers belong
  // to the operation until the Work is done. Throws Error on a broken contract; CommError comes out of Work::wait().

  // data[i] = reduction over all ranks of data[i]; the same bits on every rank.
  Work all_reduce(void* data, size_t count, DType dtype, ReduceOp op, CollectiveOptions options = {});

  // own = this rank's chunk (chunk_of(count, rank(), size())) of the reduction of `full` over all ranks.
  // `count` is the length of `full`, whose contents are destroyed. `own` may be its place inside `full`, else no overlap.
  Work reduce_scatter(void* full, void* own, size_t count, DType dtype, ReduceOp op, CollectiveOptions options = {});

  // full = every rank's chunk, in rank order. `own` may be its place inside `full`, else no overlap.
  Work all_gather(const void* own, void* full, size_t count, DType dtype, CollectiveOptions options = {});

  // data = rank `root`'s data.
  Work broadcast(void* data, size_t count, DType dtype, int root, CollectiveOptions options = {});

  // Done when every rank of the group has begun it.
  Work barrier(CollectiveOptions options = {});

  // This rank's clock beside rank 0's and the link from its left neighbour, measured now; all zero in a dry run. COLLECTIVE;
  // blocks. Throws CommError.
  ProbeResult probe();

  // The communicator of the ranks that gave the same colour, numbered in the order of this group. It shares this rank's
  // progress thread and queue. COLLECTIVE over this group; blocks. Throws CommError.
  // `color_of`, where given, is every rank's colour: what a dry communicator, alone, must know.
  Communicator split(int color, const std::function<int(int rank)>& color_of = {});

  // This rank's bytes and messages so far, over all groups.
  WireStats wire_stats() const;

  // Bytes of scratch (category communication) that this rank's progress thread holds from start to end.
  size_t scratch_bytes() const;

  // Whether this group exchanges data through shared memory; known when an operation of it is done. False in a dry run.
  bool shares_memory() const;

  // Position of this rank in the whole job, and the job's size: what error texts call `rank R/N`.
  int world_rank() const;
  int world_size() const;

  Progress& progress() { return *progress_; }

 private:
  struct Prepared;
  Work issue(Prepared&& operation);

  std::shared_ptr<Progress> progress_;  // null in a dry run
  std::shared_ptr<Dry> dry_;            // null otherwise
  std::shared_ptr<Group> group_;
};

}  // namespace rz::comm
