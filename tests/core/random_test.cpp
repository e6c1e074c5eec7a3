// Counter-based randomness: known answers, independence of order, moments.
#include "runtime/core/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace rz {
namespace {

// Known answers of the reference implementation (Random123, kat_vectors: philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, IsAFunctionOfItsKeysAlone) {
  const Random a(1, "init:w");
  const Random b(1, "init:w");
  std::vector<float> forward;
  for (uint64_t i = 0; i < 100; ++i) forward.push_back(a.normal(i));
  for (uint64_t i = 100; i-- > 0;) EXPECT_EQ(b.normal(i), forward[i]);
}

TEST(Random, KeysMatter) {
  const uint64_t base = Random(1, "x", 2, 3).bits64(5);
  EXPECT_NE(base, Random(2, "x", 2, 3).bits64(5));
  EXPECT_NE(base, Random(1, "y", 2, 3).bits64(5));
  EXPECT_NE(base, Random(1, "x", 3, 3).bits64(5));
  EXPECT_NE(base, Random(1, "x", 2, 4).bits64(5));
  EXPECT_NE(base, Random(1, "x", 2, 3).bits64(6));
  EXPECT_NE(Random(1, "x", 3, 2).bits64(5), Random(1, "x", 2, 3).bits64(5));
}

TEST(Random, HasTheRightMoments) {
  const Random random(3, "moments");
  constexpr uint64_t kCount = 200000;
  double sum = 0, squares = 0, fourth = 0, uniform = 0, pairs = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = random.normal(i);
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    uniform += random.uniform(i);
    if (i % 2 == 1) pairs += x * random.normal(i - 1);
  }
  // Five standard errors.
  EXPECT_NEAR(sum / kCount, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(squares / kCount, 1, 5 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(fourth / kCount, 3, 5 * std::sqrt(96.0 / kCount));
  EXPECT_NEAR(uniform / kCount, 0.5, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(pairs / (kCount / 2), 0, 5 / std::sqrt(kCount / 2));
}

TEST(Random, BelowStaysInRangeAndReachesTheEnds) {
  const Random random(4, "below");
  bool low = false, high = false;
  for (uint64_t i = 0; i < 1000; ++i) {
    const uint64_t v = random.below(i, 7);
    ASSERT_LT(v, 7u);
    low |= v == 0;
    high |= v == 6;
  }
  EXPECT_TRUE(low && high);
  EXPECT_EQ(random.below(0, 1), 0u);
}

}  // namespace
}  // namespace rz
