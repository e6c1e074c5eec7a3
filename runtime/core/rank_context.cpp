#include "runtime/core/rank_context.h"

#include "runtime/core/error.h"
#include "runtime/core/parallel.h"

namespace rz {

namespace {
thread_local std::shared_ptr<RankContext> t_bound;
}

RankContext::RankContext(int rank, int threads, bool dry) : rank_(rank), dry_(dry), memory_(std::make_shared<MemoryTracker>()) {
  set_threads(threads);
}
RankContext::~RankContext() = default;

std::shared_ptr<RankContext> RankContext::make(int rank, int threads) {
  return std::shared_ptr<RankContext>(new RankContext(rank, threads, false));
}

std::shared_ptr<RankContext> RankContext::make_dry(int rank, int threads) {
  return std::shared_ptr<RankContext>(new RankContext(rank, threads, true));
}

const std::shared_ptr<RankContext>& RankContext::current() {
  // Never destroyed: storages held by other statics may outlive this file's.
  static const auto* process = new std::shared_ptr<RankContext>(make(0));
  return t_bound ? t_bound : *process;
}

void RankContext::set_threads(int threads) {
  RZ_CONFIG_CHECK(threads >= 1 && threads <= 1024, "threads must be between 1 and 1024, not {}", threads);
  threads_.reset();
  threads_ = std::make_unique<ThreadPool>(threads, !dry_);
}

RankContextScope::RankContextScope(std::shared_ptr<RankContext> context) : previous_(std::move(t_bound)) { t_bound = std::move(context); }
RankContextScope::~RankContextScope() { t_bound = std::move(previous_); }

}  // namespace rz
