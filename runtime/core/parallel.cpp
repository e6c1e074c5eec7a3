#include "runtime/core/parallel.h"

#include <algorithm>

#include "runtime/core/rank_context.h"

namespace rz {

namespace {
constexpr int kSpins = 2000;  // about 20 us: longer than the gap between two kernels of a step, shorter than a scheduler tick
thread_local bool t_inside = false;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

ThreadPool::ThreadPool(int threads, bool start) : threads_(threads) {
  if (!start) return;
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  start_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::run(int pieces, const std::function<void(int)>& body) {
  if (pieces <= 1 || t_inside) {
    for (int p = 0; p < pieces; ++p) body(p);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    pieces_ = pieces;
    failure_ = nullptr;
    remaining_.store(threads_ - 1);
    generation_.fetch_add(1, std::memory_order_release);
  }
  start_.notify_all();
  t_inside = true;
  std::exception_ptr own;
  try {
    body(0);
  } catch (...) {
    own = std::current_exception();
  }
  t_inside = false;
  for (int spin = 0; spin < kSpins && remaining_.load(std::memory_order_acquire) > 0; ++spin) relax();
  std::unique_lock lock(mutex_);
  finish_.wait(lock, [&] { return remaining_.load() == 0; });
  if (own) std::rethrow_exception(own);
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::worker(int index) {
  t_inside = true;
  uint64_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) relax();
    const std::function<void(int)>* body = nullptr;
    int pieces = 0;
    {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stop_) return;
      body = body_;
      pieces = pieces_;
    }
    std::exception_ptr failure;
    if (index < pieces) {
      try {
        (*body)(index);
      } catch (...) {
        failure = std::current_exception();
      }
    }
    std::lock_guard lock(mutex_);
    if (failure && !failure_) failure_ = failure;
    if (remaining_.fetch_sub(1) == 1) finish_.notify_one();
  }
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  RankContext& context = *RankContext::current();
  if (context.dry()) return;
  auto& pool = context.threads();
  const int64_t most = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  const int pieces = static_cast<int>(std::min<int64_t>(pool.threads(), most));
  if (pieces == 1) return body(0, count);
  // The context is thread-local; workers see the caller's through this capture only where a body needs it (kernels do not).
  pool.run(pieces, [&](int piece) { body(count * piece / pieces, count * (piece + 1) / pieces); });
}

int thread_count() { return RankContext::current()->threads().threads(); }

}  // namespace rz
