// parallel_for: covers the range once, carries exceptions, nests, and survives many short calls.
#include "runtime/core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/core/rank_context.h"

namespace rz {
namespace {

class Parallel : public testing::TestWithParam<int> {
 protected:
  RankContextScope bound_{RankContext::make(0, GetParam())};
};

TEST_P(Parallel, CoversTheRangeOnce) {
  for (const int64_t count : {0, 1, 2, 7, 100, 1001}) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
    parallel_for(count, 3, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
    });
    for (const auto& h : hits) ASSERT_EQ(h.load(), 1);
  }
}

TEST_P(Parallel, RethrowsOnTheCaller) {
  EXPECT_THROW(parallel_for(100, 1, [](int64_t, int64_t end) { RZ_CHECK(end < 100, "the last piece fails"); }), Error);
  // The pool still works.
  std::atomic<int64_t> sum = 0;
  parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum.load(), 100);
}

TEST_P(Parallel, NestsOnTheCallingThread) {
  std::atomic<int64_t> sum = 0;
  parallel_for(10, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) parallel_for(10, 1, [&](int64_t b, int64_t e) { sum += e - b; });
  });
  EXPECT_EQ(sum.load(), 100);
}

TEST_P(Parallel, SurvivesManyShortCalls) {
  int64_t total = 0;
  for (int round = 0; round < 3000; ++round) {
    std::array<int64_t, 8> parts{};
    parallel_for(8, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) parts[static_cast<size_t>(i)] = i;
    });
    total += std::accumulate(parts.begin(), parts.end(), int64_t{0});
  }
  EXPECT_EQ(total, 3000 * 28);
}

INSTANTIATE_TEST_SUITE_P(Threads, Parallel, testing::Values(1, 2, 3, 5));

TEST(ThreadCount, RefusesNonsense) {
  EXPECT_THROW(RankContext::make(0, 0), ConfigError);
  EXPECT_THROW(RankContext::make(0, 100000), ConfigError);
}

}  // namespace
}  // namespace rz
