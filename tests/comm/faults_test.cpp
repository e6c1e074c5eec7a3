// What a job does when ranks disagree, leave, fail or stop: every rank gets an error that names the cause, in time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/support/ranks.h"

namespace rz {
namespace {

using comm::CommError;
using comm::Communicator;
using comm::LaunchOptions;
using comm::Order;
using comm::ReduceOp;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kDeadline = 1.0;
constexpr LaunchOptions kBounded{.deadline_s = kDeadline};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

using Body = std::function<void(Communicator&)>;

std::vector<float>& buffer() {
  static thread_local std::vector<float> b(4096, 1.0f);
  return b;
}

void reduce(Communicator& comm, size_t count, ReduceOp op = ReduceOp::sum, const char* name = "gradient", Order order = Order::ring) {
  comm.all_reduce(buffer().data(), count, DType::f32, op, {.name = name, .order = order}).wait();
}

struct Mismatch {
  const char* what;
  Body right;  // all ranks but the odd one
  Body wrong;  // the odd one
  const char* in_error;
};

// gtest prints parameters.
void PrintTo(const Mismatch& m, std::ostream* os) { *os << m.what; }

class MismatchTest : public ::testing::TestWithParam<Mismatch> {};

TEST_P(MismatchTest, IsAnErrorOnEveryRankNamingBothSides) {
  for (const int n : {2, 3, 4}) {
    for (const int odd : {0, n - 1}) {
      const auto begin = std::chrono::steady_clock::now();
      const auto errors = test::errors_on_ranks(n, {.deadline_s = 20}, [&](Communicator& comm) {
        reduce(comm, 64);
        (comm.rank() == odd ? GetParam().wrong : GetParam().right)(comm);
      });
      EXPECT_LT(seconds_since(begin), 5) << "told at once, not by the deadline";
      for (const std::string& e : errors) {
        EXPECT_THAT(e, HasSubstr("ranks disagree")) << n;
        EXPECT_THAT(e, HasSubstr(fmt::format("rank {} called op#2", odd)));
        EXPECT_THAT(e, HasSubstr("(all_reduce, f32, 100)"));
        EXPECT_THAT(e, HasSubstr(GetParam().in_error));
      }
    }
  }
}

const Mismatch kMismatches[] = {
    {"kind", [](Communicator& c) { reduce(c, 100); },
     [](Communicator& c) { c.all_gather(buffer().data(), buffer().data(), 100, DType::f32).wait(); }, "kind"},
    {"barrier", [](Communicator& c) { reduce(c, 100); }, [](Communicator& c) { c.barrier().wait(); }, "barrier"},
    {"dtype", [](Communicator& c) { reduce(c, 100); },
     [](Communicator& c) { c.all_reduce(buffer().data(), 100, DType::i32, ReduceOp::sum).wait(); }, "dtype"},
    {"count", [](Communicator& c) { reduce(c, 100); }, [](Communicator& c) { reduce(c, 99); }, "count"},
    {"count, ordered", [](Communicator& c) { reduce(c, 100, ReduceOp::sum, "g", Order::ordered); },
     [](Communicator& c) { reduce(c, 4000, ReduceOp::sum, "g", Order::ordered); }, "count"},
    {"op", [](Communicator& c) { reduce(c, 100); }, [](Communicator& c) { reduce(c, 100, ReduceOp::max); }, "op"},
    {"order", [](Communicator& c) { reduce(c, 100); }, [](Communicator& c) { reduce(c, 100, ReduceOp::sum, "gradient", Order::ordered); },
     "order"},
    {"name", [](Communicator& c) { reduce(c, 100); }, [](Communicator& c) { reduce(c, 100, ReduceOp::sum, "weights"); }, "name"},
    {"missing",
     [](Communicator& c) {
       reduce(c, 100);
       reduce(c, 101, ReduceOp::sum, "next");
     },
     [](Communicator& c) { reduce(c, 101, ReduceOp::sum, "next"); }, "count"},
};
INSTANTIATE_TEST_SUITE_P(EveryWay, MismatchTest, ::testing::ValuesIn(kMismatches));

TEST(Mismatch, Root) {
  for (const std::string& e : test::errors_on_ranks(3, kBounded, [](Communicator& comm) {
         comm.broadcast(buffer().data(), 10, DType::f32, comm.rank() == 1 ? 1 : 0, {.name = "weights"}).wait();
       })) {
    EXPECT_THAT(e, AllOf(HasSubstr("ranks disagree"), HasSubstr("root")));
  }
}

// Groups that disagree about who goes first.
TEST(Mismatch, GroupOrder) {
  const auto errors = test::errors_on_ranks(2, kBounded, [](Communicator& comm) {
    Communicator other = comm.split(0);
    if (comm.rank() == 0) {
      auto w = comm.barrier();
      other.barrier().wait();
      w.wait();
    } else {
      auto w = other.barrier();
      comm.barrier().wait();
      w.wait();
    }
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("ranks disagree"), HasSubstr("group"))));
}

// One rank calls once more than the others, whose programs have ended: known from their leaving, before any deadline.
TEST(Mismatch, OneCallTooMany) {
  const auto begin = std::chrono::steady_clock::now();
  const auto errors = test::errors_on_ranks(3, {.deadline_s = 20}, [](Communicator& comm) {
    reduce(comm, 10);
    if (comm.rank() == 1) reduce(comm, 10, ReduceOp::sum, "extra");
  });
  EXPECT_LT(seconds_since(begin), 5);
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("op#2 extra(all_reduce, f32, 10)"), HasSubstr("ranks 0, 2 left without calling op#2"))));
}

// One rank computes on and never calls: it answers, and is named for not having called.
TEST(Faults, RankThatDoesNotCallIsNamed) {
  std::atomic<bool> over{false};
  const auto errors = test::errors_on_ranks(4, kBounded, [&](Communicator& comm) {
    reduce(comm, 10);
    if (comm.rank() == 2) {
      while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      reduce(comm, 10);  // fails at once, with the same text
    } else {
      try {
        reduce(comm, 10);
      } catch (...) {
        over = true;
        throw;
      }
    }
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 2 answers but has not called op#2 (called 1, idle)"), Not(HasSubstr("no answer")))));
}

TEST(Faults, StoppedRankIsNamedWithinTheDeadline) {
  for (const int n : {2, 3, 5}) {
    for (const bool before : {true, false}) {
      auto hub = std::make_shared<comm::ThreadHub>(n);
      const int victim = n / 2;
      std::atomic<int> failed{0};
      const auto errors = test::errors_on_ranks(
          n, kBounded,
          [&](Communicator& comm) {
            reduce(comm, 4096);
            const auto begin = std::chrono::steady_clock::now();
            if (comm.rank() == victim && before) hub->freeze(victim, true);
            try {
              for (int i = 0; i < 1'000'000; ++i) {
                reduce(comm, 4096);
                if (comm.rank() == victim && i == 50) hub->freeze(victim, true);
              }
            } catch (...) {
              EXPECT_LT(seconds_since(begin), kDeadline + 1.5);
              if (comm.rank() != victim && ++failed == n - 1) hub->freeze(victim, false);  // lets the test end
              throw;
            }
          },
          hub);
      for (int r = 0; r < n; ++r) {
        EXPECT_THAT(errors[static_cast<size_t>(r)], HasSubstr(fmt::format("no answer from rank {}: dead or stopped", victim)))
            << r << "/" << n;
        EXPECT_THAT(errors[static_cast<size_t>(r)], HasSubstr("gradient(all_reduce, f32, 4096)"));
      }
    }
  }
}

TEST(Faults, ExceptionOnOneRankReachesAll) {
  for (const int n : {2, 4}) {
    const auto errors = test::errors_on_ranks(n, {.deadline_s = 20}, [](Communicator& comm) {
      reduce(comm, 10);
      if (comm.rank() == 1) throw std::runtime_error("the dog ate the shard");
      for (;;) reduce(comm, 10);
    });
    EXPECT_EQ(errors[1], "the dog ate the shard");
    EXPECT_THAT(errors[0], AllOf(HasSubstr("ended"), HasSubstr("by rank 1"), HasSubstr("the dog ate the shard")));
  }
}

// A rank that fails with operations in flight: they are given up before its buffers go.
TEST(Faults, FailureWithOperationsInFlight) {
  const auto errors = test::errors_on_ranks(3, {.deadline_s = 20}, [](Communicator& comm) {
    std::vector<std::vector<float>> data(8, std::vector<float>(100'000));
    std::vector<comm::Work> works;
    for (auto& d : data) works.push_back(comm.all_reduce(d.data(), d.size(), DType::f32, ReduceOp::sum));
    struct WaitForAll {
      std::vector<comm::Work>& works;
      ~WaitForAll() {
        for (auto& w : works) {
          try {
            w.wait();
          } catch (const CommError&) {
          }
        }
      }
    } guard{works};
    if (comm.rank() == 2) throw std::runtime_error("stop here");
    for (auto& w : works) w.wait();
    comm.barrier().wait();
  });
  EXPECT_EQ(errors[2], "stop here");
  EXPECT_THAT(errors[0], HasSubstr("stop here"));
}

TEST(Faults, LaterOperationsFailWithTheSameText) {
  test::errors_on_ranks(2, kBounded, [](Communicator& comm) {
    std::string first;
    try {
      reduce(comm, comm.rank() == 0 ? 10 : 11);
      ADD_FAILURE() << "different counts went through";
    } catch (const CommError& e) {
      first = e.what();
    }
    for (int i = 0; i < 3; ++i) {
      try {
        comm.barrier().wait();
        ADD_FAILURE() << "a failed job went on";
      } catch (const CommError& e) {
        EXPECT_EQ(e.what(), first);
      }
    }
  });
}

// No false alarm: a rank that takes its time, but less than the deadline, again and again.
TEST(Faults, SlowRankIsNoFault) {
  test::run_on_ranks(3,
                     [](Communicator& comm) {
                       for (int i = 0; i < 3; ++i) {
                         if (comm.rank() == i) std::this_thread::sleep_for(std::chrono::milliseconds(1200));
                         reduce(comm, 1000);
                       }
                       // One that finishes long after the others is waited for.
                       if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2500));
                     },
                     {.deadline_s = 2});
}

TEST(Launch, ExitCodesAndOutput) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(comm::run_ranks({.ranks = 3}, [](Communicator& comm) { comm.barrier().wait(); }), 0);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");

  ::testing::internal::CaptureStderr();
  EXPECT_EQ(comm::run_ranks({.ranks = 3}, [](Communicator&) { throw ConfigError("width 65 is not divisible by 4 heads"); }), 2);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "ringzero: width 65 is not divisible by 4 heads\n");

  ::testing::internal::CaptureStderr();
  EXPECT_EQ(comm::run_ranks({.ranks = 3},
                            [](Communicator& comm) {
                              if (comm.rank() == 1) throw ConfigError("cannot read weights.bin");
                              comm.barrier().wait();
                            }),
            2);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;
  EXPECT_THAT(text, AllOf(HasSubstr("ringzero: rank 0/3"), HasSubstr("ringzero: rank 1/3"), HasSubstr("cannot read weights.bin")));

  ::testing::internal::CaptureStderr();
  EXPECT_EQ(comm::run_ranks({.ranks = 2},
                            [](Communicator& comm) {
                              if (comm.rank() == 1) throw std::runtime_error("boom");
                            }),
            1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("boom"));

  ::testing::internal::CaptureStderr();
  EXPECT_EQ(comm::run_ranks({.ranks = -1}, [](Communicator&) {}), 2);
  EXPECT_EQ(comm::run_ranks({.ranks = 2, .deadline_s = -3}, [](Communicator&) {}), 2);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), AllOf(HasSubstr("-1"), HasSubstr("-3")));
}

}  // namespace
}  // namespace rz
