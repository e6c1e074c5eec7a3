// The ledger and the allocator: every byte in one category, peaks per phase, limits, reuse.
#include "runtime/core/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "runtime/core/allocator.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/tensor.h"

namespace rz {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

class Ledger : public testing::Test {
 protected:
  std::shared_ptr<RankContext> context_ = RankContext::make(0);
  RankContextScope bound_{context_};
  MemoryTracker& memory_ = context_->memory();
};

TEST_F(Ledger, CountsByCategoryAndReturnsToZero) {
  {
    const Tensor a = Tensor::empty({100}, DType::f32, Category::parameter, "a");
    CategoryScope scope(Category::workspace);
    const Tensor b = Tensor::empty({10}, DType::f64);
    const Tensor view = a.view_slice(0, 0, 50);
    EXPECT_EQ(memory_.current_bytes(Category::parameter), 400);
    EXPECT_EQ(memory_.current_bytes(Category::workspace), 80);
    EXPECT_EQ(memory_.current_bytes(), 480);
    EXPECT_EQ(memory_.unaccounted_bytes(), 0);
  }
  EXPECT_EQ(memory_.current_bytes(), 0);
  EXPECT_EQ(memory_.peak().total, 480);
}

TEST_F(Ledger, KeepsPeaksPerPhase) {
  Tensor kept = Tensor::empty({100}, DType::u8, Category::parameter, "kept");
  {
    PhaseScope forward(Phase::forward);
    const Tensor x = Tensor::empty({50}, DType::u8, Category::activation, "x");
  }
  {
    PhaseScope backward(Phase::backward);
    const Tensor x = Tensor::empty({70}, DType::u8, Category::gradient, "x");
  }
  EXPECT_EQ(memory_.peak(Phase::forward).total, 150);
  EXPECT_EQ(memory_.peak(Phase::backward).total, 170);
  EXPECT_EQ(memory_.peak(Phase::backward).by_category[static_cast<size_t>(Category::activation)], 0);
  EXPECT_EQ(memory_.peak(Phase::optimizer).total, 0);
  EXPECT_EQ(memory_.peak().at_total_peak[static_cast<size_t>(Category::gradient)], 70);
  memory_.reset_peaks();
  EXPECT_EQ(memory_.peak().total, 100);
}

TEST_F(Ledger, ListsHolders) {
  const Tensor small = Tensor::empty({10}, DType::u8, Category::parameter, "small");
  const Tensor big = Tensor::empty({1000}, DType::u8, Category::gradient, "big");
  const Tensor big2 = Tensor::empty({1000}, DType::u8, Category::gradient, "big");
  const auto live = memory_.live();
  ASSERT_EQ(live.size(), 2u);
  EXPECT_EQ(live[0].owner, "big");
  EXPECT_EQ(live[0].bytes, 2000);
  EXPECT_EQ(live[0].count, 2);
  EXPECT_THAT(memory_.report(), testing::AllOf(HasSubstr("big"), HasSubstr("gradient")));
}

TEST_F(Ledger, ALimitNamesHolderPhaseAndBytes) {
  memory_.set_limit_bytes(1000);
  const Tensor a = Tensor::empty({900}, DType::u8, Category::parameter, "weights");
  PhaseScope phase(Phase::forward);
  EXPECT_THAT([] { Tensor::empty({200}, DType::u8, Category::activation, "hidden"); },
              ThrowsMessage<Error>(testing::AllOf(HasSubstr("1000"), HasSubstr("hidden"), HasSubstr("forward"), HasSubstr("weights"))));
  EXPECT_EQ(memory_.current_bytes(), 900);
  EXPECT_NO_THROW(Tensor::empty({100}, DType::u8, Category::activation, "fits"));
}

TEST_F(Ledger, ReleasingGivesBytesBackUnderLiveViews) {
  const Tensor t = Tensor::empty({64}, DType::f32, Category::communication, "gathered");
  t.storage()->release();
  EXPECT_EQ(memory_.current_bytes(), 0);
  t.storage()->materialize();
  EXPECT_EQ(memory_.current_bytes(Category::communication), 256);
}

TEST_F(Ledger, BytesFreedOnAnotherThreadAreCreditedToTheirRank) {
  Tensor t = Tensor::empty({64}, DType::f32, Category::input, "batch");
  std::thread([moved = std::move(t)]() mutable { moved = Tensor(); }).join();
  EXPECT_EQ(memory_.current_bytes(), 0);
}

TEST_F(Ledger, RanksAreApart) {
  auto other = RankContext::make(1);
  const Tensor mine = Tensor::empty({8}, DType::u8);
  {
    RankContextScope scope(other);
    const Tensor theirs = Tensor::empty({16}, DType::u8);
    EXPECT_EQ(other->memory().current_bytes(), 16);
    EXPECT_EQ(memory_.current_bytes(), 8);
  }
  EXPECT_EQ(other->memory().current_bytes(), 0);
}

// Random allocations: blocks never overlap, are aligned, and their count of bytes agrees with the requests.
TEST(Allocator, SurvivesRandomUse) {
  struct Block {
    uint8_t* data;
    size_t bytes;
    uint8_t mark;
  };
  std::mt19937_64 random(7);
  std::vector<Block> blocks;
  const int64_t before = allocator::stats().requested_bytes;
  int64_t live = 0;
  for (int i = 0; i < 20000; ++i) {
    if (blocks.size() < 50 || random() % 2 == 0) {
      const size_t bytes = 1 + random() % (i % 100 == 0 ? (size_t{3} << 20) : 5000);
      auto* data = static_cast<uint8_t*>(allocator::allocate(bytes));
      ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % allocator::kAlignment, 0u);
      const auto mark = static_cast<uint8_t>(i);
      data[0] = data[bytes / 2] = data[bytes - 1] = mark;
      blocks.push_back({data, bytes, mark});
      live += static_cast<int64_t>(bytes);
    } else {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block b = blocks.back();
      blocks.pop_back();
      ASSERT_TRUE(b.data[0] == b.mark && b.data[b.bytes / 2] == b.mark && b.data[b.bytes - 1] == b.mark);
      allocator::deallocate(b.data, b.bytes);
      live -= static_cast<int64_t>(b.bytes);
    }
    ASSERT_EQ(allocator::stats().requested_bytes - before, live);
  }
  for (const Block& b : blocks) allocator::deallocate(b.data, b.bytes);
  EXPECT_EQ(allocator::stats().requested_bytes, before);
}

#ifndef RZ_ASAN
TEST(Allocator, SteadyStateAsksTheSystemForNothing) {
  const auto round = [] {
    std::vector<std::pair<void*, size_t>> held;
    for (size_t bytes : {size_t{100}, size_t{1} << 20, size_t{40} << 20, size_t{5000}}) held.emplace_back(allocator::allocate(bytes), bytes);
    for (auto [data, bytes] : held) allocator::deallocate(data, bytes);
  };
  round();
  const auto after_one = allocator::stats();
  for (int i = 0; i < 10; ++i) round();
  EXPECT_EQ(allocator::stats().system_allocations, after_one.system_allocations);
  EXPECT_EQ(allocator::stats().mapped_bytes, after_one.mapped_bytes);
  allocator::trim();
  EXPECT_LT(allocator::stats().mapped_bytes, after_one.mapped_bytes);
}
#endif

}  // namespace
}  // namespace rz
