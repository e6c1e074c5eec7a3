// Compute threads of one rank. parallel_for cuts an index range into one contiguous piece per thread.
//
// * Determinism: pieces depend on the range, the grain and the thread count alone. Code whose sums must not depend on the
//   thread count sums inside fixed blocks and adds the blocks in order.
// * Waiting threads spin briefly, then sleep: ranks that share cores do not starve each other.
// * The body must not throw across threads: the first exception is rethrown on the calling thread after all pieces ended.
// * A nested parallel_for runs on the calling thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace rz {

class ThreadPool {
 public:
  // Without `start` the pool only knows its size: run() must not be called.
  explicit ThreadPool(int threads, bool start = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  // Calls body(piece) for piece in [0, pieces), pieces <= threads(); piece 0 on the calling thread.
  void run(int pieces, const std::function<void(int)>& body);

 private:
  void worker(int index);

  int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable finish_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> remaining_{0};
  int pieces_ = 0;
  bool stop_ = false;
  const std::function<void(int)>* body_ = nullptr;
  std::exception_ptr failure_;
};

// body(begin, end) over disjoint pieces of [0, count); a piece has at least `grain` indices unless it is the only one.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// Number of threads of this thread's rank.
int thread_count();

}  // namespace rz
