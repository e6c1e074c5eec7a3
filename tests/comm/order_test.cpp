// The bits of a sum: the order of additions is what types.h says, for any segment size; and a wrong order would be seen.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::chunk_of;
using comm::Communicator;
using comm::Order;
using comm::ReduceOp;

// Values over many magnitudes: adding them in another order gives other bits almost surely.
template <class T>
std::vector<T> wild(int rank, size_t count) {
  std::vector<T> out(count);
  uint64_t state = 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(rank + 1);
  for (T& x : out) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const double unit = static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
    x = static_cast<T>(static_cast<float>(unit * std::exp2(static_cast<double>((state >> 3) % 9))));
  }
  return out;
}

// Sequential definitions. In ring order chunk c is summed from rank c+1 round to rank c, rounded to T at every hop.
template <class T>
std::vector<T> ring_sum(int n, size_t count, ReduceOp op, int start_shift = 1) {
  using C = compute_t<T>;
  std::vector<std::vector<T>> in;
  for (int r = 0; r < n; ++r) in.push_back(wild<T>(r, count));
  std::vector<T> out(count);
  for (int c = 0; c < n; ++c) {
    for (size_t i = chunk_of(count, c, n).begin; i < chunk_of(count, c, n).end; ++i) {
      T sum = in[static_cast<size_t>((c + start_shift) % n)][i];
      for (int k = 1; k < n; ++k) {
        sum = static_cast<T>(static_cast<C>(sum) + static_cast<C>(in[static_cast<size_t>((c + start_shift + k) % n)][i]));
      }
      out[i] = op == ReduceOp::mean ? static_cast<T>(static_cast<C>(sum) / static_cast<C>(n)) : sum;
    }
  }
  return out;
}

// In rank order everything is added from rank 0 on, and rounded to T once.
template <class T>
std::vector<T> ordered_sum(int n, size_t count, ReduceOp op) {
  using C = compute_t<T>;
  std::vector<C> sum(count, C{0});
  for (int r = 0; r < n; ++r) {
    const auto in = wild<T>(r, count);
    for (size_t i = 0; i < count; ++i) sum[i] = r == 0 ? static_cast<C>(in[i]) : sum[i] + static_cast<C>(in[i]);
  }
  std::vector<T> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<T>(op == ReduceOp::mean ? sum[i] / static_cast<C>(n) : sum[i]);
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
void check_order(int n) {
  constexpr size_t kCount = 2003;
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::mean}) {
    const auto ring = ring_sum<T>(n, kCount, op);
    const auto ordered = ordered_sum<T>(n, kCount, op);
    for (const size_t segment : {size_t{64}, size_t{1000}, size_t{256} << 10}) {
      testing::run_on_ranks(
          n,
          [&](Communicator& comm) {
            for (const Order order : {Order::ring, Order::ordered}) {
              const auto& want = order == Order::ring ? ring : ordered;
              auto data = wild<T>(comm.rank(), kCount);
              comm.all_reduce(data.data(), kCount, dtype_of<T>, op, {.order = order}).wait();
              EXPECT_TRUE(same_bits(data, want)) << name(dtype_of<T>) << " " << name(op) << " " << name(order) << " segment " << segment;
              auto full = wild<T>(comm.rank(), kCount);
              const comm::Chunk c = chunk_of(kCount, comm.rank(), n);
              std::vector<T> own(c.length());
              comm.reduce_scatter(full.data(), own.data(), kCount, dtype_of<T>, op, {.order = order}).wait();
              EXPECT_TRUE(
                  same_bits(own, std::vector<T>(want.begin() + static_cast<long>(c.begin), want.begin() + static_cast<long>(c.end))));
            }
          },
          {.segment_bytes = segment});
    }
  }
}

TEST(Order, Float32) {
  for (const int n : {2, 3, 4, 5}) check_order<float>(n);
}
TEST(Order, BFloat16) {
  for (const int n : {3, 4}) check_order<bf16>(n);
}
TEST(Order, Float16) {
  for (const int n : {3, 4}) check_order<f16>(n);
}
TEST(Order, Float64) {
  for (const int n : {3, 4}) check_order<double>(n);
}

// Negative control: a ring that starts at another rank, or rank order instead of ring order, is seen at three ranks and more.
TEST(Order, AnotherOrderHasOtherBits) {
  for (const int n : {3, 4, 5}) {
    EXPECT_FALSE(same_bits(ring_sum<float>(n, 2003, ReduceOp::sum), ring_sum<float>(n, 2003, ReduceOp::sum, 0)));
    EXPECT_FALSE(same_bits(ring_sum<float>(n, 2003, ReduceOp::sum), ordered_sum<float>(n, 2003, ReduceOp::sum)));
    EXPECT_FALSE(same_bits(ring_sum<bf16>(n, 2003, ReduceOp::sum), ordered_sum<bf16>(n, 2003, ReduceOp::sum)));
  }
}

// The ordered sum of an element does not depend on where chunk boundaries lie; the ring's does.
TEST(Order, OrderedDoesNotDependOnTheBuffer) {
  testing::run_on_ranks(3, [](Communicator& comm) {
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
