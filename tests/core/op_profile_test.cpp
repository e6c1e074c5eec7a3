#include "runtime/core/op_profile.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "runtime/core/trace.h"

namespace rz {
namespace {

using Phase = OpProfile::Phase;

TEST(OpProfile, PartsSumToTheWholeAndBelongToWhatEnded) {
  OpProfile profile;
  const OpProfile::Attach attach(&profile);
  profile.restart();
  const int64_t start = steady_now_ns();
  count_flops(100);
  profile.op_ended("linear");
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  profile.op_ended("softmax");
  {
    const OpProfile::Walk walk;
    count_flops(100);
    profile.op_ended("linear");  // recomputed
    count_flops(200);
    profile.ended("linear", Phase::backward);
  }
  profile.op_ended("linear");
  const int64_t end = steady_now_ns();

  const auto& entries = profile.entries();
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries.at({"linear", Phase::forward}).calls, 2);
  EXPECT_EQ(entries.at({"linear", Phase::forward}).flops, 100);
  EXPECT_EQ(entries.at({"linear", Phase::recompute}).flops, 100);
  EXPECT_EQ(entries.at({"linear", Phase::backward}).flops, 200);
  EXPECT_GE(entries.at({"softmax", Phase::forward}).ns, 20'000'000);
  int64_t sum = 0;
  for (const auto& [key, entry] : entries) sum += entry.ns;
  EXPECT_LE(sum, end - start + 1'000'000);
  EXPECT_GE(sum, 20'000'000);

  profile.restart();
  EXPECT_TRUE(profile.entries().empty());
}

TEST(OpProfile, WithoutOneNothingIsCounted) {
  ASSERT_EQ(OpProfile::current(), nullptr);
  count_flops(1);
  OpProfile profile;
  {
    const OpProfile::Attach attach(&profile);
    EXPECT_EQ(OpProfile::current(), &profile);
  }
  EXPECT_EQ(OpProfile::current(), nullptr);
  profile.ended("x", Phase::other);
  EXPECT_EQ(profile.entries().at({"x", Phase::other}).flops, 0);
}

}  // namespace
}  // namespace rz
