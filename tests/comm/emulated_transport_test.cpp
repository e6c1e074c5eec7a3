// Emulated links: the same results and bytes, never faster than the links permit, asleep while waiting, and faults still found.
// Whether they are as fast as the links permit is a measurement, not a test: docs/collectives.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "comm/ring.h"
#include "tests/support/conformance.h"
#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::CollectiveKind;
using comm::Communicator;
using comm::LaunchOptions;
using comm::Order;
using comm::parse_network;
using comm::ReduceOp;
using ::testing::AllOf;
using ::testing::HasSubstr;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Network {
  int ranks;
  const char* link;
  const char* between = "";
  int nodes = 1;
};
void PrintTo(const Network& n, std::ostream* os) { *os << n.ranks << " ranks, " << n.link << " " << n.between; }

class EmulatedConformance : public ::testing::TestWithParam<Network> {};

TEST_P(EmulatedConformance, EveryCollectiveSizeTypeOperationAndOrder) {
  constexpr size_t kSegmentBytes = 256;
  const Network& n = GetParam();
  std::atomic<int> ran{0};
  test::run_on_ranks(n.ranks,
                     [&](Communicator& comm) {
                       for (const std::string& f : test::check_conformance(comm, kSegmentBytes)) ADD_FAILURE() << f;
                       ++ran;
                     },
                     {.segment_bytes = kSegmentBytes, .network = parse_network(n.link, n.between, n.nodes)});
  EXPECT_EQ(ran, n.ranks);
}
INSTANTIATE_TEST_SUITE_P(Links, EmulatedConformance,
                         ::testing::Values(Network{1, "1Gbit,50us"}, Network{2, "unlimited"}, Network{3, "10Gbit,1us,jitter 20us"},
                                           Network{4, "100Gbit;1>2=1Gbit,5us", "10Gbit,3us,jitter 3us", 2}, Network{5, "1Gbit"}));

// Numbers whose sum depends on the order of additions.
std::vector<float> wild(int rank) {
  std::vector<float> out(50'001);
  uint64_t state = 77 + static_cast<uint64_t>(rank);
  for (float& x : out) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    x = static_cast<float>(state >> 40) * std::exp2(static_cast<float>((state >> 30) % 20));
  }
  return out;
}

struct Outcome {
  std::vector<float> sum;
  comm::WireStats stats;
};

Outcome reduce_on_three(std::optional<comm::NetworkSpec> network) {
  std::vector<Outcome> ranks(3);
  test::run_on_ranks(3,
                     [&](Communicator& comm) {
                       Outcome& mine = ranks[static_cast<size_t>(comm.rank())];
                       mine.sum = wild(comm.rank());
                       comm.all_reduce(mine.sum.data(), mine.sum.size(), DType::f32, ReduceOp::sum).wait();
                       comm.all_reduce(mine.sum.data(), mine.sum.size(), DType::f32, ReduceOp::mean, {.order = Order::ordered}).wait();
                       comm.barrier().wait();
                       mine.stats = comm.wire_stats();
                     },
                     {.segment_bytes = 4096, .network = std::move(network)});
  return ranks[1];
}

TEST(EmulatedTransport, ChangesNeitherBitsNorBytesOnTheWire) {
  const Outcome plain = reduce_on_three(std::nullopt);
  for (const char* link : {"unlimited", "10Gbit,100us", "300Mbit,10us,jitter 200us", "1Gbit;0>1=100Mbit,1ms"}) {
    const Outcome emulated = reduce_on_three(parse_network(link));
    EXPECT_EQ(std::memcmp(plain.sum.data(), emulated.sum.data(), plain.sum.size() * sizeof(float)), 0) << link;
    for (const CollectiveKind kind : {CollectiveKind::all_reduce, CollectiveKind::barrier}) {
      EXPECT_EQ(plain.stats.of(kind), emulated.stats.of(kind)) << link;
    }
    EXPECT_EQ(plain.stats.header, emulated.stats.header) << link;
  }
}

// The time of `body` on `ranks` ranks, the slowest rank's, without starting up.
double time_of(int ranks, const LaunchOptions& options, const std::function<void(Communicator&)>& body) {
  std::vector<double> seconds(static_cast<size_t>(ranks));
  test::run_on_ranks(
      ranks,
      [&](Communicator& comm) {
        comm.barrier().wait();
        const double begin = now_s();
        body(comm);
        seconds[static_cast<size_t>(comm.rank())] = now_s() - begin;
      },
      options);
  return *std::max_element(seconds.begin(), seconds.end());
}

TEST(EmulatedTransport, IsNotFasterThanItsLinks) {
  const auto reduce = [](Order order) {
    return [order](Communicator& comm) {
      std::vector<float> data(60'000, 1.0f);
      comm.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::sum, {.order = order}).wait();
    };
  };
  // 3 ranks, chunks of 80 kB: 6.4 ms each at 100 Mbit/s.
  const auto network = parse_network("100Mbit,1ms");
  for (const size_t segment : {size_t{8'000}, size_t{80'000}}) {
    const double least = comm::ring_pass_s(network.inside, 4, 80e3, static_cast<double>(segment));
    EXPECT_GE(time_of(3, {.segment_bytes = segment, .network = network}, reduce(Order::ring)), least) << segment;
  }
  // Rank by rank: two chunks out of one port, then two steps of an all-gather.
  EXPECT_GE(time_of(3, {.network = network}, reduce(Order::ordered)), 2 * 6.4e-3 + 1e-3 + comm::ring_pass_s(network.inside, 2, 80e3, 80e3));
  // One slow link holds up the whole ring: 4 chunks of 64 ms.
  EXPECT_GE(time_of(3, {.network = parse_network("1Gbit;1>2=10Mbit")}, reduce(Order::ring)), 4 * 64e-3);
  // Even nothing takes a latency: a fingerprint, and two rounds of a barrier.
  EXPECT_GE(time_of(3, {.network = parse_network("unlimited,20ms")}, [](Communicator& comm) { comm.barrier().wait(); }), 60e-3);
}

TEST(EmulatedTransport, RanksOfANodeShareItsPort) {
  // Ranks 0 and 1, on one node, send 125 kB to two other nodes, or receive as much from them, at once: 10 ms for each message.
  for (const bool out : {true, false}) {
    test::run_on_ranks(6,
                       [out](Communicator& comm) {
                         constexpr int kPair[] = {0, 1, 0, 2, 1, 2};  // 0 with 2, 1 with 4
                         Communicator pair = comm.split(kPair[comm.rank()]);
                         std::vector<std::byte> data(125'000);
                         const double begin = now_s();  // before anybody sends
                         comm.barrier().wait();
                         if (kPair[comm.rank()] != 2) pair.broadcast(data.data(), data.size(), DType::u8, out ? 0 : 1).wait();
                         comm.barrier().wait();
                         EXPECT_GE(now_s() - begin, 2 * 10e-3) << (out ? "out" : "in");
                       },
                       {.network = parse_network("unlimited", "100Mbit", 3)});
  }
}

double cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto s = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  return s(usage.ru_utime) + s(usage.ru_stime);
}

// Three ranks wait for half a second and more; what they compute is next to nothing.
TEST(EmulatedTransport, WaitingCostsNoProcessorTime) {
  double cpu = 0, wall = 0;
  test::run_on_ranks(3,
                     [&](Communicator& comm) {
                       std::vector<float> data(30'000, 1.0f);
                       comm.barrier().wait();
                       const double cpu_before = cpu_s(), before = now_s();
                       for (int i = 0; i < 4; ++i) comm.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::sum).wait();
                       if (comm.rank() == 0) cpu = cpu_s() - cpu_before, wall = now_s() - before;
                     },
                     {.network = parse_network("10Mbit,1ms")});
  EXPECT_GT(wall, 0.5);
#ifdef RZ_TSAN
  constexpr double kShare = 0.5;  // everything costs some ten times as much; a rank that spins takes as much as the wall clock
#else
  constexpr double kShare = 0.1;
#endif
  EXPECT_LT(cpu, kShare * wall) << "of all three ranks";
}

TEST(EmulatedTransport, AStoppedRankIsNamedWithinTheDeadline) {
  constexpr int kRanks = 3, kVictim = 1;
  constexpr double kDeadline = 1;
  auto hub = std::make_shared<comm::ThreadHub>(kRanks);
  std::atomic<int> failed{0};
  const auto errors = test::errors_on_ranks(
      kRanks, {.deadline_s = kDeadline, .network = parse_network("100Mbit,1ms,jitter 1ms")},
      [&](Communicator& comm) {
        std::vector<float> data(30'000, 1.0f);
        const double begin = now_s();
        try {
          for (int i = 0; i < 1'000'000; ++i) {
            comm.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::sum, {.name = "gradient"}).wait();
            if (comm.rank() == kVictim && i == 3) hub->freeze(kVictim, true);
          }
        } catch (...) {
          EXPECT_LT(now_s() - begin, kDeadline + 3);
          if (comm.rank() != kVictim && ++failed == kRanks - 1) hub->freeze(kVictim, false);  // lets the test end
          throw;
        }
      },
      hub);
  for (const std::string& e : errors) EXPECT_THAT(e, AllOf(HasSubstr("no answer from rank 1: dead or stopped"), HasSubstr("gradient")));
}

TEST(EmulatedTransport, AnExceptionOnOneRankReachesAllAtOnce) {
  std::vector<std::vector<float>> data(3, std::vector<float>(1'000'000, 1.0f));  // a quarter of a minute on its way
  const double begin = now_s();
  const auto errors = test::errors_on_ranks(3, {.deadline_s = 20, .network = parse_network("1Mbit,10ms")}, [&](Communicator& comm) {
    auto& mine = data[static_cast<size_t>(comm.rank())];
    const auto work = comm.all_reduce(mine.data(), mine.size(), DType::f32, ReduceOp::sum);
    if (comm.rank() == 1) throw std::runtime_error("the dog ate the shard");
    work.wait();
  });
  EXPECT_LT(now_s() - begin, 8);
  for (const std::string& e : errors) EXPECT_THAT(e, HasSubstr("the dog ate the shard"));
}

// An operation may take longer than the deadline as long as segments arrive.
TEST(EmulatedTransport, ASlowLinkIsNoFault) {
  const double seconds = time_of(2, {.deadline_s = 2, .segment_bytes = 4096, .network = parse_network("1Mbit")}, [](Communicator& comm) {
    std::vector<float> data(80'000, 1.0f);
    comm.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::sum).wait();
  });
  EXPECT_GT(seconds, 2.5);
}

TEST(EmulatedTransport, RefusesWhatCannotWork) {
  const auto refused = [](const LaunchOptions& options) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(comm::run_ranks(options, [](Communicator&) { ADD_FAILURE() << "ran"; }), 2);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(refused({.ranks = 3, .network = parse_network("1Gbit", "", 2)}),
            "ringzero: nodes is 2, which does not divide 3 ranks into equal blocks\n");
  EXPECT_EQ(refused({.ranks = 2, .network = parse_network("1Gbit;1>2=1Gbit")}),
            "ringzero: link names ranks 1>2, but there are 2 ranks (0 ... 1)\n");
  EXPECT_EQ(refused({.ranks = 2, .deadline_s = 1, .segment_bytes = 100'000, .network = parse_network("1Gbit;0>1=100Kbit")}),
            "ringzero: link 100Kbit: a segment of 100000 bytes takes 8 s, beyond the communication deadline of 1 s\n");
}

}  // namespace
}  // namespace rz
