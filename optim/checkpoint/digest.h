// xxh64 with seed 0, whole and piece by piece. Finds damage, not malice. A Digest belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

struct XXH64_state_s;

namespace rz::optim::checkpoint {

uint64_t digest_of(std::string_view bytes);

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void add(const void* data, size_t bytes);
  uint64_t value() const;  // of all bytes since the start or reset()
  void reset();

 private:
  XXH64_state_s* state_;
};

}  // namespace rz::optim::checkpoint
