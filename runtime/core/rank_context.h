// What belongs to one rank inside a process: its memory ledger and its compute threads. Under mpirun a process has one; in
// tests and with the thread transport every rank-thread binds its own, and helper threads bind their creator's.
#pragma once

#include <memory>

#include "runtime/core/memory.h"

namespace rz {

class ThreadPool;

class RankContext {
 public:
  // `threads` = compute threads of this rank, the caller included.
  static std::shared_ptr<RankContext> make(int rank, int threads = 1);
  // A rank that only pretends: code bound to it runs as always and is counted in the ledger to the byte, but its storages cost no
  // memory, parallel_for calls no body and no thread is started. What storages hold reads as zeros and must not be written;
  // code that writes outside parallel_for asks dry_run() first. This is how a job is planned by the code that runs it.
  static std::shared_ptr<RankContext> make_dry(int rank, int threads = 1);
  // The one bound to this thread, or the process's own (rank 0, one thread).
  static const std::shared_ptr<RankContext>& current();

  ~RankContext();

  int rank() const { return rank_; }
  bool dry() const { return dry_; }
  MemoryTracker& memory() { return *memory_; }
  const std::shared_ptr<MemoryTracker>& shared_memory() const { return memory_; }

  ThreadPool& threads() { return *threads_; }
  // Replaces the pool; call it only while no parallel_for of this rank runs. ConfigError unless 1 <= threads <= 1024.
  void set_threads(int threads);

  // Whether its matrix products may use the CPU's tile registers where there are any (kernels/cpu/gemm_tiles.h): faster, other bits. At
  // first they may. Set by one thread, before the rank computes.
  bool tiles() const { return tiles_; }
  void set_tiles(bool allowed) { tiles_ = allowed; }

 private:
  RankContext(int rank, int threads, bool dry);

  int rank_;
  bool dry_;
  bool tiles_ = true;
  std::shared_ptr<MemoryTracker> memory_;
  std::unique_ptr<ThreadPool> threads_;
};

// Whether this thread's rank only pretends (RankContext::make_dry): nothing may be written, nothing read is meant.
inline bool dry_run() { return RankContext::current()->dry(); }

// Binds a context to this thread for the scope's life.
class RankContextScope {
 public:
  explicit RankContextScope(std::shared_ptr<RankContext> context);
  ~RankContextScope();
  RankContextScope(const RankContextScope&) = delete;
  RankContextScope& operator=(const RankContextScope&) = delete;

 private:
  std::shared_ptr<RankContext> previous_;
};

}  // namespace rz
