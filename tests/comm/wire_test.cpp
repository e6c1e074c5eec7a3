// Bytes on the wire against their closed forms, without tolerance; splitting; scratch; digests of fingerprints.
#include <gtest/gtest.h>

#include "comm/control.h"
#include "comm/ring.h"
#include "runtime/core/rank_context.h"
#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::chunk_of;
using comm::CollectiveKind;
using comm::Communicator;
using comm::Order;
using comm::ReduceOp;
using comm::WireCount;

TEST(Fingerprint, DigestsDifferWhereFingerprintsDo) {
  comm::Fingerprint mine;
  mine.set_name("gradient");
  mine.sequence = 7;
  mine.count = 12;
  std::vector<comm::Fingerprint> all(11, mine);
  all[1].group = 1;
  all[2].sequence = 8;
  all[3].count = 13;
  all[4].set_name("weights");
  all[5].segment_bytes = 64;
  all[6].root = 0;
  all[7].kind = CollectiveKind::all_reduce;
  all[8].dtype = DType::f32;
  all[9].op = ReduceOp::max;
  all[10].order = Order::ordered;
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < all.size(); ++j) {
      EXPECT_EQ(all[i].digest() == all[j].digest(), i == j) << i << " " << j;
      EXPECT_EQ(all[i] == all[j], i == j);
    }
  }
}

WireCount counted(Communicator& comm, CollectiveKind kind, const std::function<void()>& run) {
  const WireCount before = comm.wire_stats().of(kind);
  run();
  return comm.wire_stats().of(kind) - before;
}

TEST(Wire, BytesPerRankAreTheClosedForm) {
  for (const int n : {1, 2, 3, 4, 5, 7}) {
    test::run_on_ranks(
        n,
        [n](Communicator& comm) {
          for (const size_t count : {size_t{0}, size_t{3}, size_t{64}, size_t{65}, size_t{420}, size_t{4201}}) {
            const uint64_t all = count * 4;
            const auto chunk = [&](int r) { return uint64_t{4} * chunk_of(count, (r % n + n) % n, n).length(); };
            const int r = comm.rank();
            std::vector<float> data(count, 1.0f), own(count);
            for (const Order order : {Order::ring, Order::ordered}) {
              const WireCount reduce = counted(comm, CollectiveKind::all_reduce, [&] {
                comm.all_reduce(data.data(), count, DType::f32, ReduceOp::sum, {.order = order}).wait();
              });
              if (n > 1 && count > 0 && all <= 256 && all * static_cast<uint64_t>(n) <= 4 * 256) {  // as much as four segments hold
                // All that all contribute but one's own, twice as much in every turn.
                EXPECT_EQ(reduce.sent_bytes, static_cast<uint64_t>(n - 1) * all) << count << " " << name(order);
                EXPECT_EQ(reduce.received_bytes, reduce.sent_bytes);
                EXPECT_EQ(reduce.sent_messages, n == 2 ? 1u : n <= 4 ? 2u : 3u);
              } else {
                // Every chunk but the own one, then every chunk but the right neighbour's.
                EXPECT_EQ(reduce.sent_bytes, n == 1 ? 0 : all - chunk(r) + all - chunk(r + 1)) << count << " " << name(order);
              }
              if (count == 420) {  // divisible by every n
                EXPECT_EQ(reduce.sent_bytes, 2 * static_cast<uint64_t>(n - 1) * all / static_cast<uint64_t>(n));
                EXPECT_EQ(reduce.received_bytes, reduce.sent_bytes);
              }
              const WireCount scatter = counted(comm, CollectiveKind::reduce_scatter, [&] {
                comm.reduce_scatter(data.data(), own.data(), count, DType::f32, ReduceOp::sum, {.order = order}).wait();
              });
              EXPECT_EQ(scatter.sent_bytes, n == 1 ? 0 : all - chunk(r));
            }
            const WireCount gather =
                counted(comm, CollectiveKind::all_gather, [&] { comm.all_gather(own.data(), data.data(), count, DType::f32).wait(); });
            EXPECT_EQ(gather.sent_bytes, n == 1 ? 0 : all - chunk(r + 1));
            const WireCount cast =
                counted(comm, CollectiveKind::broadcast, [&] { comm.broadcast(data.data(), count, DType::f32, 0).wait(); });
            EXPECT_EQ(cast.sent_bytes, r == n - 1 ? 0 : all);
            EXPECT_EQ(cast.received_bytes, r == 0 ? 0 : all);
          }
        },
        {.segment_bytes = 256});
  }
}

TEST(Wire, HeadersAreCountedApart) {
  test::run_on_ranks(3, [](Communicator& comm) {
    const auto before = comm.wire_stats();
    comm.barrier().wait();
    comm.barrier().wait();
    const auto after = comm.wire_stats();
    EXPECT_EQ((after.header - before.header).sent_messages, 2u);
    EXPECT_EQ((after.of(CollectiveKind::barrier) - before.of(CollectiveKind::barrier)).sent_bytes, 0u);
    EXPECT_EQ((after.of(CollectiveKind::barrier) - before.of(CollectiveKind::barrier)).sent_messages, 4u);
  });
}

TEST(Wire, ScratchIsConstantAndInTheLedger) {
  test::run_on_ranks(3, [](Communicator& comm) {
    auto& memory = RankContext::current()->memory();
    EXPECT_EQ(memory.current_bytes(Category::communication), static_cast<int64_t>(comm.scratch_bytes()));
    std::vector<double> data(200'000);
    comm.all_reduce(data.data(), data.size(), DType::f64, ReduceOp::sum, {.order = Order::ordered}).wait();
    comm.all_reduce(data.data(), data.size(), DType::f64, ReduceOp::max).wait();
    EXPECT_EQ(memory.peak().total, static_cast<int64_t>(comm.scratch_bytes()));
  });
}

// Whatever is asked for, the scratch has room for an element of every peer.
TEST(Wire, SegmentsAreAtLeastWhatOrderedSumsOfAllRanksNeed) {
  for (int n = 2; n <= 2048; ++n) {
    const size_t segment = comm::least_segment_bytes(n), scratch = comm::kRingWindow * segment;
    const auto peers = static_cast<size_t>(n - 1);
    EXPECT_LE(peers * comm::ordered_segment_elements(segment, scratch, 8, peers) * 8, scratch) << n;
  }
  constexpr int kRanks = 37;
  test::run_on_ranks(
      kRanks,
      [](Communicator& comm) {
        std::vector<double> data(5 * kRanks);
        for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<double>(i) + comm.rank();
        comm.all_reduce(data.data(), data.size(), DType::f64, ReduceOp::sum, {.order = Order::ordered}).wait();
        for (size_t i = 0; i < data.size(); ++i) EXPECT_EQ(data[i], kRanks * static_cast<double>(i) + kRanks * (kRanks - 1) / 2);
      },
      {.intra_node = comm::IntraNode::messages, .segment_bytes = 1});
}

// Hybrid sharding: reduce-scatter inside a group, all-reduce across groups, on one progress thread.
TEST(Split, GroupsWorkSideBySide) {
  test::run_on_ranks(6, [](Communicator& comm) {
    Communicator inside = comm.split(comm.rank() / 3);
    Communicator across = comm.split(comm.rank() % 3);
    EXPECT_EQ(inside.size(), 3);
    EXPECT_EQ(inside.rank(), comm.rank() % 3);
    EXPECT_EQ(across.size(), 2);
    EXPECT_EQ(across.rank(), comm.rank() / 3);
    EXPECT_EQ(across.world_rank(), comm.rank());
    std::vector<float> full(9), own(3);
    for (size_t i = 0; i < 9; ++i) full[i] = static_cast<float>(comm.rank() + 1) * static_cast<float>(i + 1);
    const auto a = inside.reduce_scatter(full.data(), own.data(), 9, DType::f32, ReduceOp::sum);
    const auto b = across.all_reduce(own.data(), 3, DType::f32, ReduceOp::sum);
    const auto c = inside.all_gather(own.data(), full.data(), 9, DType::f32);
    c.wait();
    for (size_t i = 0; i < 9; ++i) EXPECT_EQ(full[i], 21.0f * static_cast<float>(i + 1));
    Communicator alone = inside.split(comm.rank());
    EXPECT_EQ(alone.size(), 1);
    alone.all_reduce(full.data(), 9, DType::f32, ReduceOp::mean).wait();
    EXPECT_EQ(full[8], 189.0f);
  });
}

TEST(Communicator, RefusesWhatMakesNoSense) {
  test::run_on_ranks(2, [](Communicator& comm) {
    int32_t x = 0;
    EXPECT_THROW(comm.all_reduce(&x, 1, DType::i32, ReduceOp::mean), Error);
    EXPECT_THROW(comm.broadcast(&x, 1, DType::i32, 2), Error);
    EXPECT_THROW(comm.broadcast(&x, 1, DType::i32, -1), Error);
  });
}

}  // namespace
}  // namespace rz
