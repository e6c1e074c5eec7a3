// Communication beside compute changes no bit: overlap on or off, any prefetch, any link, any bucket (with ordered sums), and any timing,
// which random delays at every hand-over vary while freed memory reads as NaN. RZ_FUZZ_SEEDS = how many timings (default 3).
#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/core/allocator.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

class Poison {
 public:
  Poison() { allocator::set_poison(true); }
  ~Poison() { allocator::set_poison(false); }
};

int fuzz_seeds() {
  const char* text = std::getenv("RZ_FUZZ_SEEDS");
  return text == nullptr ? 3 : std::atoi(text);
}

void expect_all(const std::vector<Trace>& traces, const Trace& expected) {
  for (const Trace& t : traces) EXPECT_EQ(t, expected);
}

class Overlap : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  RunSettings settings() const {
    RunSettings s;
    std::tie(s.ranks, s.stage) = GetParam();
    s.steps = 3;
    s.ema_decay = 0.9;  // an average is swapped in by nobody, but published weights feed it
    return s;
  }
};

TEST_P(Overlap, OffIsTheSameAsOn) {
  const Trace reference = train_gpt(settings())[0];
  RunSettings off = settings();
  off.overlap = false;
  expect_all(train_gpt(off), reference);
  RunSettings accumulating = settings();
  accumulating.accumulation = {.micro_batches = 2, .reduce_every = true};
  const Trace accumulated = train_gpt(accumulating)[0];
  accumulating.overlap = false;
  expect_all(train_gpt(accumulating), accumulated);
}

TEST_P(Overlap, AnyPrefetch) {
  const Trace reference = train_gpt(settings())[0];
  for (const int prefetch : {0, 2, 100}) {
    for (const int64_t limit : {0, 9000}) {
      RunSettings s = settings();
      s.prefetch = prefetch;
      s.prefetch_bytes = limit;
      SCOPED_TRACE(fmt::format("prefetch {}, {} bytes", prefetch, limit));
      expect_all(train_gpt(s), reference);
    }
  }
}

TEST_P(Overlap, AnyLink) {
  const Trace reference = train_gpt(settings())[0];
  for (const char* link : {"50Mbit,200us,jitter 300us", "10Gbit,10us;1>2=20Mbit,100us"}) {
    RunSettings s = settings();
    s.launch.network = comm::parse_network(link);
    SCOPED_TRACE(link);
    expect_all(train_gpt(s), reference);
  }
}

TEST_P(Overlap, AnyBucketWithOrderedSums) {
  RunSettings s = settings();
  s.order = comm::Order::ordered;
  const Trace reference = train_gpt(s)[0];
  s.launch.fuzz_seed = 5;
  for (const int64_t bucket : {1, 2000, 1 << 20}) {
    s.bucket_bytes = bucket;
    SCOPED_TRACE(fmt::format("buckets of {} bytes", bucket));
    expect_all(train_gpt(s), reference);
  }
}

TEST_P(Overlap, AnyTiming) {
  // A bucket for each unit, and several, which layers wait for one by one.
  RunSettings variants[] = {settings(), settings()};
  variants[1].bucket_bytes = 1000;
  const Trace references[] = {train_gpt(variants[0])[0], train_gpt(variants[1])[0]};
  const Poison poison;
  for (int seed = 1; seed <= fuzz_seeds(); ++seed) {
    const size_t variant = seed / 2 % 2;
    RunSettings s = variants[variant];
    s.launch.fuzz_seed = static_cast<uint64_t>(seed);
    s.prefetch = seed % 3;
    SCOPED_TRACE(fmt::format("fuzz seed {}", seed));
    expect_all(train_gpt(s), references[variant]);
  }
}

TEST_P(Overlap, PlantedTroublesChangeNothing) {
  const Trace reference = train_gpt(settings())[0];
  RunSettings s = settings();
  s.experiment = {.slow_factor = 1.5, .late_bucket = "blocks.1"};
  expect_all(train_gpt(s), reference);
}

INSTANTIATE_TEST_SUITE_P(RanksAndStages, Overlap, ::testing::Combine(::testing::Values(3, 4), ::testing::Values(0, 1, 2, 3)));

TEST(OverlapErrors, NamesTheBucketsThatThereAre) {
  RunSettings s;
  s.experiment.late_bucket = "blocks.7";
  const auto errors = test::errors_on_ranks(1, {}, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    train_on(comm, gpt, s, {});
  });
  EXPECT_NE(errors[0].find("there is no bucket 'blocks.7' to be late; valid: outermost, blocks.0"), std::string::npos) << errors[0];
}

// Memory that was given back reads as NaN, so that the runs above would notice its use.
TEST(Poisoning, FreedAndFreshMemoryIsNaN) {
  const Poison poison;
  const Tensor fresh = Tensor::empty({1000}, DType::f32, Category::workspace, "poisoned");
  for (const float v : fresh.to_vector<float>()) ASSERT_NE(v, v);
}

}  // namespace
}  // namespace rz::optim
