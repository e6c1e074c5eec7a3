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
  // The one bound to this thread, or the process's own (rank 0, one thread).
  static const std::shared_ptr<RankContext>& current();

  ~RankContext();

  int rank() const { return rank_; }
  MemoryTracker& memory() { return *memory_; }
  const std::shared_ptr<MemoryTracker>& shared_memory() const { return memory_; }

  ThreadPool& threads() { return *threads_; }
  // Replaces the pool; call it only while no parallel_for of this rank runs. ConfigError unless 1 <= threads <= 1024.
  void set_threads(int threads);

 private:
  RankContext(int rank, int threads);

  int rank_;
  std::shared_ptr<MemoryTracker> memory_;
  std::unique_ptr<ThreadPool> threads_;
};

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
