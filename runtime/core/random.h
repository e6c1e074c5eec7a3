// Counter-based random numbers, keyed by meaning (decision D9): Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A value is a pure function of (seed, stream, position): no state, no order, no ranks.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace rz {

// Ten rounds of Philox on a 128-bit counter with a 64-bit key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A stream of random numbers, one for each position in [0, 2^62).
class Random {
 public:
  // `stream` says what the numbers are for ("init:blocks.0.attn.weight", "dropout", ...); `a` and `b` are further keys, such as
  // the step and the global sample index.
  Random(uint64_t seed, std::string_view stream, uint64_t a = 0, uint64_t b = 0);

  uint32_t bits(uint64_t position) const { return block(position / 4)[position % 4]; }
  uint64_t bits64(uint64_t position) const;
  // Uniform in [0, 1), 24 bits.
  float uniform(uint64_t position) const { return to_unit(bits(position)); }
  // Uniform in [0, 1), 53 bits.
  double uniform64(uint64_t position) const { return static_cast<double>(bits64(position) >> 11) * 0x1.0p-53; }
  // Standard normal by Box-Muller; positions 2k and 2k+1 share a pair of uniforms.
  float normal(uint64_t position) const;
  // normal(2 * pair) and normal(2 * pair + 1), for the price of one.
  std::pair<float, float> normal_pair(uint64_t pair) const;
  // Uniform in [0, bound), bound > 0, without modulo bias worth speaking of (bound < 2^32 is exact to 2^-32).
  uint64_t below(uint64_t position, uint64_t bound) const;

  // The four words at positions 4*index ... 4*index+3.
  std::array<uint32_t, 4> block(uint64_t index) const;
  static float to_unit(uint32_t word) { return static_cast<float>(word >> 8) * 0x1.0p-24f; }

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> high_;  // upper half of the counter
};

// A 64-bit hash of text, the same on every machine (FNV-1a, then a finalizer).
uint64_t stable_hash(std::string_view text);

}  // namespace rz
