#include "runtime/core/random.h"

#include <cmath>
#include <numbers>

namespace rz {

namespace {
// SplitMix64's finalizer: spreads keys that differ in few bits.
uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1), static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1],
         static_cast<uint32_t>(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

uint64_t stable_hash(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325ull;
  for (const char ch : text) h = (h ^ static_cast<unsigned char>(ch)) * 0x100000001B3ull;
  return mix(h);
}

Random::Random(uint64_t seed, std::string_view stream, uint64_t a, uint64_t b) {
  const uint64_t key = mix(seed + 0x9E3779B97F4A7C15ull) ^ stable_hash(stream);
  const uint64_t high = mix(mix(a + 0x632BE59BD9B4E019ull) + b);
  key_ = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  high_ = {static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
}

std::array<uint32_t, 4> Random::block(uint64_t index) const {
  return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), high_[0], high_[1]}, key_);
}

uint64_t Random::bits64(uint64_t position) const {
  const auto words = block(position / 2);
  const size_t at = position % 2 * 2;
  return (uint64_t{words[at]} << 32) | words[at + 1];
}

std::pair<float, float> Random::normal_pair(uint64_t pair) const {
  const auto words = block(pair / 2);
  const size_t at = pair % 2 * 2;
  // (w + 0.5) / 2^32 lies strictly inside (0, 1): the logarithm is finite.
  const double u = (static_cast<double>(words[at]) + 0.5) * 0x1.0p-32;
  const double angle = 2.0 * std::numbers::pi * (static_cast<double>(words[at + 1]) + 0.5) * 0x1.0p-32;
  const double radius = std::sqrt(-2.0 * std::log(u));
  return {static_cast<float>(radius * std::cos(angle)), static_cast<float>(radius * std::sin(angle))};
}

float Random::normal(uint64_t position) const {
  const auto [even, odd] = normal_pair(position / 2);
  return position % 2 == 0 ? even : odd;
}

uint64_t Random::below(uint64_t position, uint64_t bound) const {
  __extension__ using uint128 = unsigned __int128;
  return static_cast<uint64_t>((static_cast<uint128>(bits64(position)) * bound) >> 64);
}

}  // namespace rz
