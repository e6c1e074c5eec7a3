// Random delays at every place where one thread hands something to another, for tests: whatever the timing, the results must be the
// same. A null Fuzz delays nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace rz::comm {

class Fuzz {
 public:
  // Null for seed 0.
  static std::shared_ptr<Fuzz> make(uint64_t seed, int rank);

  // Returns after 0 to 300 us; half of the time at once.
  void delay();

 private:
  Fuzz(uint64_t seed, int rank) : seed_(seed), rank_(rank) {}

  uint64_t seed_;
  int rank_;
  std::atomic<uint64_t> calls_{0};
};

inline void delay(const std::shared_ptr<Fuzz>& fuzz) {
  if (fuzz) fuzz->delay();
}

}  // namespace rz::comm
