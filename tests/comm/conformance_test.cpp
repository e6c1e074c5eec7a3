// The conformance suite over ranks as threads. The same suite runs over MPI in mpi_main.cpp.
// To add a collective, add its checks to conformance.cpp.
#include "tests/support/conformance.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::Communicator;

class Conformance : public ::testing::TestWithParam<int> {};

TEST_P(Conformance, EveryCollectiveSizeTypeOperationAndOrder) {
  constexpr size_t kSegmentBytes = 256;
  std::atomic<int> ran{0};
  test::run_on_ranks(GetParam(),
                     [&](Communicator& comm) {
                       EXPECT_EQ(comm.size(), GetParam());
                       for (const std::string& f : test::check_conformance(comm, kSegmentBytes)) ADD_FAILURE() << f;
                       ++ran;
                     },
                     {.segment_bytes = kSegmentBytes});
  EXPECT_EQ(ran, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Ranks, Conformance, ::testing::Values(1, 2, 3, 4, 5, 7));

TEST(Collectives, LargeBuffersWithTheDefaultSegment) {
  test::run_on_ranks(3, [](Communicator& comm) {
    constexpr size_t kCount = (size_t{4} << 20) + 17;
    std::vector<float> data(kCount);
    for (size_t i = 0; i < kCount; ++i) data[i] = static_cast<float>(comm.rank() + static_cast<int>(i % 1000));
    comm.all_reduce(data.data(), kCount, DType::f32, comm::ReduceOp::sum).wait();
    for (size_t i = 0; i < kCount; ++i) {
      if (data[i] != static_cast<float>(3 + 3 * (i % 1000))) {
        ADD_FAILURE() << "element " << i << " is " << data[i];
        break;
      }
    }
  });
}

// Reference case of a reduce-scatter over three ranks of the lists ((r+1) * i)^(j+1), i = 1, 2, j = 0, 1, 2.
TEST(Collectives, GoldenReduceScatter) {
  const std::vector<std::vector<int32_t>> want{{6, 12}, {14, 56}, {36, 288}};
  test::run_on_ranks(3, [&](Communicator& comm) {
    std::vector<int32_t> full;
    for (int j = 0; j < 3; ++j) {
      for (int i = 1; i <= 2; ++i) {
        int32_t v = 1;
        for (int k = 0; k <= j; ++k) v *= (comm.rank() + 1) * i;
        full.push_back(v);
      }
    }
    std::vector<int32_t> own(2);
    comm.reduce_scatter(full.data(), own.data(), full.size(), DType::i32, comm::ReduceOp::sum).wait();
    EXPECT_EQ(own, want[static_cast<size_t>(comm.rank())]);
  });
}

TEST(Collectives, SeveralInFlightCompleteInOrder) {
  test::run_on_ranks(4, [](Communicator& comm) {
    constexpr size_t kOperations = 40;
    std::vector<std::vector<int64_t>> data(kOperations, std::vector<int64_t>(100));
    std::vector<comm::Work> works;
    for (size_t k = 0; k < kOperations; ++k) {
      for (int64_t& x : data[k]) x = static_cast<int64_t>(k) + comm.rank();
      works.push_back(comm.all_reduce(data[k].data(), data[k].size(), DType::i64, comm::ReduceOp::sum));
    }
    works.back().wait();
    int64_t last = 0;
    for (size_t k = 0; k < kOperations; ++k) {
      EXPECT_TRUE(works[k].done());
      EXPECT_EQ(data[k][99], static_cast<int64_t>(4 * k) + 6);
      const comm::WorkTimes t = works[k].times();
      EXPECT_GT(t.queued_ns, 0);
      EXPECT_LE(t.queued_ns, t.started_ns);
      EXPECT_LE(t.started_ns, t.first_byte_ns);
      EXPECT_LE(t.first_byte_ns, t.done_ns);
      EXPECT_LE(last, t.started_ns);
      last = t.done_ns;
    }
  });
}

// An operation that the caller runs may be queued while the progress thread ends the one before: it begins after that all the same.
TEST(Collectives, CallersOperationsBeginAfterTheThreads) {
  test::run_on_ranks(2, [](Communicator& comm) {
    std::vector<float> block(20'000);
    float few[2] = {};
    for (int i = 0; i < 1500; ++i) {
      const comm::Work before = comm.all_reduce(block.data(), block.size(), DType::f32, comm::ReduceOp::max);
      for (int turns = i % 50; turns > 0; --turns) before.done();
      const comm::Work after = comm.all_reduce(few, 2, DType::f32, comm::ReduceOp::max);
      after.wait();
      before.wait();
      EXPECT_LE(before.times().done_ns, after.times().started_ns) << i;
      EXPECT_LE(after.times().started_ns, after.times().done_ns) << i;
    }
  });
}

TEST(Collectives, NaNPropagates) {
  test::run_on_ranks(3, [](Communicator& comm) {
    for (const comm::ReduceOp op : {comm::ReduceOp::max, comm::ReduceOp::min, comm::ReduceOp::sum}) {
      for (int bad = 0; bad < 3; ++bad) {
        std::vector<float> data(48, static_cast<float>(comm.rank()));
        if (comm.rank() == bad) data[7] = data[40] = std::numeric_limits<float>::quiet_NaN();
        comm.all_reduce(data.data(), data.size(), DType::f32, op).wait();
        for (size_t i = 0; i < data.size(); ++i) EXPECT_EQ(data[i] != data[i], i == 7 || i == 40) << i;
      }
    }
  });
}

}  // namespace
}  // namespace rz
