#include "comm/fuzz.h"

#include <chrono>
#include <thread>

#include "runtime/core/random.h"

namespace rz::comm {

std::shared_ptr<Fuzz> Fuzz::make(uint64_t seed, int rank) { return seed == 0 ? nullptr : std::shared_ptr<Fuzz>(new Fuzz(seed, rank)); }

void Fuzz::delay() {
  constexpr uint64_t kLongest_us = 300;
  const uint64_t drawn =
      Random(seed_, "fuzz", static_cast<uint64_t>(rank_)).below(calls_.fetch_add(1, std::memory_order_relaxed), 2 * kLongest_us);
  if (drawn < kLongest_us) std::this_thread::sleep_for(std::chrono::microseconds(drawn));
}

}  // namespace rz::comm
