// The bits of a sum: the order of additions is what types.h says, for any segment size; and a wrong order would be seen.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "runtime/core/storage.h"
#include "tests/support/order.h"
#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::chunk_of;
using comm::Communicator;
using comm::Order;
using comm::ReduceOp;

using test::ordered_sum;
using test::ring_sum;
using test::same_bits;
using test::wild;

template <class T>
void check_order(int n, size_t count) {
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::mean}) {
    const auto ring = ring_sum<T>(n, count, op);
    const auto ordered = ordered_sum<T>(n, count, op);
    for (const size_t segment : {size_t{64}, size_t{1000}, size_t{256} << 10}) {
      test::run_on_ranks(
          n,
          [&](Communicator& comm) {
            for (const Order order : {Order::ring, Order::ordered}) {
              const auto& want = order == Order::ring ? ring : ordered;
              auto data = wild<T>(comm.rank(), count);
              comm.all_reduce(data.data(), count, dtype_of<T>, op, {.order = order}).wait();
              EXPECT_TRUE(same_bits(data, want))
                  << name(dtype_of<T>) << " " << name(op) << " " << name(order) << " " << count << " segment " << segment;
              auto full = wild<T>(comm.rank(), count);
              const comm::Chunk c = chunk_of(count, comm.rank(), n);
              std::vector<T> own(c.length());
              comm.reduce_scatter(full.data(), own.data(), count, dtype_of<T>, op, {.order = order}).wait();
              EXPECT_TRUE(
                  same_bits(own, std::vector<T>(want.begin() + static_cast<long>(c.begin), want.begin() + static_cast<long>(c.end))));
            }
          },
          {.segment_bytes = segment});
    }
  }
}

TEST(Order, Float32) {
  for (const int n : {2, 3, 4, 5}) check_order<float>(n, 2003);
}
TEST(Order, BFloat16) {
  for (const int n : {3, 4}) check_order<bf16>(n, 2003);
}
TEST(Order, Float16) {
  for (const int n : {3, 4}) check_order<f16>(n, 2003);
}
TEST(Order, Float64) {
  for (const int n : {3, 4}) check_order<double>(n, 2003);
}
// All-reduces that are gathered: less than one element a rank, and several.
TEST(Order, OfShortData) {
  for (const int n : {2, 3, 5, 8}) {
    for (const size_t count : {size_t{1}, size_t{2}, size_t{31}}) {
      check_order<float>(n, count);
      check_order<bf16>(n, count);
      check_order<double>(n, count);
    }
  }
}

// Negative control: a ring that starts at another rank, or rank order instead of ring order, is seen at three ranks and more.
TEST(Order, AnotherOrderHasOtherBits) {
  for (const int n : {3, 4, 5}) {
    EXPECT_FALSE(same_bits(ring_sum<float>(n, 2003, ReduceOp::sum), ring_sum<float>(n, 2003, ReduceOp::sum, 0)));
    EXPECT_FALSE(same_bits(ring_sum<float>(n, 2003, ReduceOp::sum), ordered_sum<float>(n, 2003, ReduceOp::sum)));
    EXPECT_FALSE(same_bits(ring_sum<bf16>(n, 2003, ReduceOp::sum), ordered_sum<bf16>(n, 2003, ReduceOp::sum)));
  }
}

// Shared memory and messages give the same bits: every type, reduction and order, short data and long, buffers of any alignment.
template <class T>
std::vector<std::vector<T>> everything(int n, comm::IntraNode way, size_t count) {
  std::vector<std::vector<T>> results(static_cast<size_t>(n));
  test::run_on_ranks(n,
                     [&](Communicator& comm) {
                       auto& out = results[static_cast<size_t>(comm.rank())];
                       const auto input = wild<T>(comm.rank(), count + 1);
                       const comm::Chunk c = chunk_of(count, comm.rank(), n);
                       for (const ReduceOp op : {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min}) {
                         if (op == ReduceOp::mean && !is_floating(dtype_of<T>)) continue;
                         for (const Order order : {Order::ring, Order::ordered}) {
                           auto data = input;
                           comm.all_reduce(data.data() + 1, count, dtype_of<T>, op, {.order = order}).wait();
                           out.insert(out.end(), data.begin(), data.end());
                           data = input;
                           std::vector<T> own(c.length());
                           comm.reduce_scatter(data.data() + 1, own.data(), count, dtype_of<T>, op, {.order = order}).wait();
                           out.insert(out.end(), own.begin(), own.end());
                         }
                       }
                       auto data = input;
                       comm.all_gather(input.data() + 1 + c.begin, data.data() + 1, count, dtype_of<T>).wait();
                       out.insert(out.end(), data.begin(), data.end());
                       data = input;
                       comm.broadcast(data.data() + 1, count, dtype_of<T>, n - 1).wait();
                       out.insert(out.end(), data.begin(), data.end());
                       EXPECT_EQ(comm.shares_memory(), way == comm::IntraNode::shared);
                     },
                     {.intra_node = way, .segment_bytes = 1000});
  return results;
}

template <class T>
void check_same_bits_on_both_ways() {
  for (const int n : {2, 3, 4, 5, 7}) {
    for (const size_t count : {size_t{1}, static_cast<size_t>(n - 1), size_t{61}, size_t{1009}, size_t{20011}}) {
      const auto shared = everything<T>(n, comm::IntraNode::shared, count);
      const auto messages = everything<T>(n, comm::IntraNode::messages, count);
      for (size_t r = 0; r < shared.size(); ++r) {
        EXPECT_GT(shared[r].size(), count);
        EXPECT_TRUE(same_bits(shared[r], messages[r])) << name(dtype_of<T>) << ", rank " << r << "/" << n << ", " << count << " elements";
      }
    }
  }
}

TEST(SharedMemory, SameBitsAsMessages) {
  check_same_bits_on_both_ways<float>();
  check_same_bits_on_both_ways<double>();
  check_same_bits_on_both_ways<bf16>();
  check_same_bits_on_both_ways<f16>();
  check_same_bits_on_both_ways<int32_t>();
  check_same_bits_on_both_ways<int64_t>();
  check_same_bits_on_both_ways<uint8_t>();
}

// Two groups of the same ranks and the whole job in turn, some operations long and some short, none waited for before the next.
TEST(SharedMemory, GroupsInTurn) {
  test::run_on_ranks(4, [](Communicator& comm) {
    Communicator rows = comm.split(comm.rank() / 2);
    Communicator columns = comm.split(comm.rank() % 2);
    for (const size_t count : {size_t{2}, size_t{3'000}, size_t{200'000}}) {
      for (int round = 0; round < 20; ++round) {
        std::vector<std::vector<int32_t>> data(3, std::vector<int32_t>(count, 1 << (8 * (round % 2) + comm.rank())));
        std::vector<comm::Work> works;
        works.push_back(rows.all_reduce(data[0].data(), count, DType::i32, ReduceOp::sum));
        if (round % 3 == 0) works.back().wait();
        works.push_back(columns.all_reduce(data[1].data(), count, DType::i32, ReduceOp::sum));
        works.push_back(comm.all_reduce(data[2].data(), count, DType::i32, ReduceOp::sum));
        for (const comm::Work& w : works) w.wait();
        const int32_t shift = 8 * (round % 2);
        EXPECT_EQ(data[0], std::vector<int32_t>(count, (comm.rank() < 2 ? 3 : 12) << shift));
        EXPECT_EQ(data[1], std::vector<int32_t>(count, (comm.rank() % 2 == 0 ? 5 : 10) << shift));
        EXPECT_EQ(data[2], std::vector<int32_t>(count, 15 << shift));
      }
    }
  });
}

// A short operation that its caller ends, while the progress thread runs the long one behind it: the counters miss neither.
TEST(SharedMemory, CountsWhoeverRunsAnOperation) {
  constexpr uint64_t kRounds = 300;
  test::run_on_ranks(3, [](Communicator& comm) {
    std::vector<float> small(3, 1.0f), large(30'000, 1.0f);
    const auto before = comm.wire_stats().of(comm::CollectiveKind::broadcast).sent_bytes;
    for (uint64_t i = 0; i < kRounds; ++i) {
      const comm::Work first = comm.broadcast(small.data(), small.size(), DType::f32, 0);
      const comm::Work second = comm.broadcast(large.data(), large.size(), DType::f32, 0);
      first.wait();
      second.wait();
    }
    const uint64_t sent = comm.rank() == 2 ? 0 : kRounds * 4 * (small.size() + large.size());
    EXPECT_EQ(comm.wire_stats().of(comm::CollectiveKind::broadcast).sent_bytes - before, sent);
  });
}

// Whoever never waits for a short operation gets it nonetheless, and what looks at it without waiting sees its end.
TEST(SharedMemory, ShortOperationsThatNobodyWaitsForEnd) {
  test::run_on_ranks(3, [](Communicator& comm) {
    std::vector<float> a(10, 1.0f), b(10, 1.0f);
    const comm::Work first = comm.all_reduce(a.data(), a.size(), DType::f32, ReduceOp::sum);
    while (!first.done()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(a[9], 3.0f);
    EXPECT_GT(first.times().first_byte_ns, 0);
    comm.all_reduce(b.data(), b.size(), DType::f32, ReduceOp::sum);  // its buffer outlives it: the barrier comes later
    comm.barrier().wait();
    EXPECT_EQ(b[0], 3.0f);
  });
}

// The ordered sum of an element does not depend on where chunk boundaries lie; the ring's does.
TEST(Order, OrderedDoesNotDependOnTheBuffer) {
  test::run_on_ranks(3, [](Communicator& comm) {
    for (const Order order : {Order::ring, Order::ordered}) {
      auto whole = wild<float>(comm.rank(), 999);
      auto parts = whole;
      comm.all_reduce(whole.data(), 999, DType::f32, ReduceOp::sum, {.order = order}).wait();
      comm.all_reduce(parts.data(), 500, DType::f32, ReduceOp::sum, {.order = order}).wait();
      comm.all_reduce(parts.data() + 500, 499, DType::f32, ReduceOp::sum, {.order = order}).wait();
      EXPECT_EQ(same_bits(whole, parts), order == Order::ordered);
    }
  });
}

}  // namespace
}  // namespace rz
