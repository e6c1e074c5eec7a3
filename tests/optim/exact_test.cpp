// Order-independent sums: one digest, one list of losses and norms, whatever the sharding; what each guard catches; how exact the
// sums are.
#include "optim/shard/exact_sum.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <set>

#include "comm/ring.h"
#include "optim/shard/exact_gradients.h"
#include "runtime/core/rank_context.h"
#include "tests/optim/awkward_model.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

using ::testing::HasSubstr;

TEST(ExactSums, OfSingleNumbersReachEveryRankAlike) {
  const std::vector<double> numbers = {3.25, -1e-17, 0x1p59, -0x1.123456789abcdp40, 1e-9, 7, -0x1p59};
  FixedSum expected;
  for (double v : numbers) ASSERT_TRUE(expected.add(v));
  test::run_on_ranks(7, [&](comm::Communicator& comm) {
    FixedSum own;
    EXPECT_TRUE(own.add(numbers[static_cast<size_t>(comm.rank())]));
    std::array<Int128, 2> sums = {own.value, -(Int128{1} << 110) * comm.rank()};
    all_reduce_exactly(comm, sums, "numbers");
    EXPECT_TRUE(sums[0] == expected.value);
    EXPECT_TRUE(sums[1] == -(Int128{1} << 110) * 21);
  });
  FixedSum s;
  EXPECT_FALSE(s.add(NAN));
  EXPECT_FALSE(s.add(INFINITY));
  EXPECT_FALSE(s.add(0x1p60));
  EXPECT_NEAR(expected.to_double(), -0x1.123456789abcdp40 + 10.25, 1e-3);
}

RunSettings exact_settings(int64_t micro_batch = 2) {
  RunSettings s;
  s.micro_batch = micro_batch;  // 15 sequences: 8 micro-batches, the last of one sequence
  return s;
}

const Trace& reference() {
  static const Trace trace = train_gpt(exact_settings())[0];
  return trace;
}

class ExactForEveryRankCount : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, ExactForEveryRankCount, ::testing::ValuesIn(test::rank_counts()));

TEST_P(ExactForEveryRankCount, OneDigestForAllShardings) {
  RunSettings s = exact_settings();
  s.ranks = GetParam();
  for (int stage = 0; stage < 4; ++stage) {
    s.stage = stage;
    for (const int64_t bucket_bytes : {0, 1, 3000, 1 << 20}) {
      for (const bool reduce_every : {false, true}) {
        for (const int64_t group : {0, 2}) {
          if (group > 0 && s.ranks % group != 0) continue;
          s.bucket_bytes = bucket_bytes;
          s.accumulation.reduce_every = reduce_every;
          s.group_size = group;
          for (const Trace& trace : train_gpt(s))
            EXPECT_EQ(trace, reference()) << "stage " << stage << " bucket " << bucket_bytes << " reduce_every " << reduce_every
                                          << " groups of " << group;
        }
      }
    }
  }
}

TEST_P(ExactForEveryRankCount, OneDigestForTiedFrozenUnusedAndTinyParameters) {
  Trace expected;
  for (int stage = -1; stage < 4; ++stage) {
    for (const int64_t bucket_bytes : {0, 1, 1 << 20}) {
      RunSettings s = exact_settings(4);
      s.ranks = stage < 0 ? 1 : GetParam();
      s.stage = std::max(stage, 0);
      s.bucket_bytes = bucket_bytes;
      test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
        Awkward model;
        const Trace trace = train_on(comm, model, s, [&](auto... a) { return awkward_loss(model, s, a...); });
        if (comm.rank() != 0) return;
        if (expected.digest == 0) expected = trace;
        EXPECT_EQ(trace, expected) << "stage " << stage << " bucket " << bucket_bytes;
      });
    }
  }
}

TEST(ExactSums, TwentyStepsAgree) {
  RunSettings s = exact_settings(1);
  s.steps = 20;
  const Trace alone = train_gpt(s)[0];
  struct Variant {
    int ranks, stage;
    int64_t bucket_bytes, group_size;
    bool reduce_every;
  };
  for (const Variant& v :
       {Variant{3, 3, 0, 0, true}, Variant{4, 2, 2000, 2, false}, Variant{5, 0, 1, 0, false}, Variant{7, 1, 1 << 20, 0, true}}) {
    s.ranks = v.ranks;
    s.stage = v.stage;
    s.bucket_bytes = v.bucket_bytes;
    s.group_size = v.group_size;
    s.accumulation.reduce_every = v.reduce_every;
    for (const Trace& trace : train_gpt(s)) EXPECT_EQ(trace, alone) << v.ranks << " ranks, stage " << v.stage;
  }
}

TEST(ExactSums, MoreRanksThanMicroBatches) {
  RunSettings s = exact_settings(6);  // three micro-batches
  const Trace alone = train_gpt(s)[0];
  s.ranks = 5;
  for (int stage = 0; stage < 4; ++stage) {
    s.stage = stage;
    EXPECT_EQ(train_gpt(s)[4], alone) << stage;
  }
}

TEST(ExactSums, ThreadsChangeNoBit) {
  // Automatic thread counts differ with the number of ranks on a machine. Large enough for kernels to share work out.
  models::TransformerConfig c = tiny_gpt();
  c.layers = 1;
  c.width = 96;
  c.context = 64;
  c.vocabulary = 300;
  c.mlp_width = 384;
  RunSettings s = exact_settings(3);
  s.batch = 6;
  s.steps = 2;
  std::vector<Trace> traces(3);
  for (const int threads : {1, 2, 3}) {
    test::run_on_ranks(1, [&](comm::Communicator& comm) {
      RankContext::current()->set_threads(threads);
      models::Transformer gpt(c);
      traces[static_cast<size_t>(threads - 1)] = train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); });
    });
  }
  EXPECT_EQ(traces[1], traces[0]);
  EXPECT_EQ(traces[2], traces[0]);
}

TEST(ExactSums, OtherOrdersOfSumsAreSeen) {
  // The negative control: added as floats, the same micro-batches on other numbers of ranks give other bits.
  RunSettings s;
  s.batch = 14;
  std::set<uint64_t> digests;
  for (const int ranks : {1, 2, 7}) {
    s.ranks = ranks;
    s.accumulation.micro_batches = 14 / ranks;  // of one sequence
    digests.insert(train_gpt(s)[0].digest);
  }
  EXPECT_EQ(digests.size(), 3u);
}

TEST(ExactSums, FirstStepAloneIsRepeated) { EXPECT_THAT(reference().repeats, ::testing::ElementsAre(1, 0, 0, 0)); }

// A loss whose gradients jump by 2^jump in one step.
Trace train_jumping(comm::Communicator& comm, RunSettings s, int jump) {
  models::Transformer gpt(tiny_gpt());
  s.steps = 6;
  return train_on(comm, gpt, s, [&](int64_t step, int64_t first, int64_t count) {
    const auto& c = gpt.config();
    const double factor = step == 3 ? std::ldexp(1.0, jump) : 1.0;
    const double scale = factor / static_cast<double>(s.batch * c.context);
    auto r = gpt.loss(test_tokens(step, first, count, c.context, c.vocabulary, 0),
                      test_tokens(step, first, count, c.context, c.vocabulary, 1), scale);
    return MicroLoss{std::move(r.loss), r.sum, r.count};
  });
}

TEST(ExactSums, AStepBeyondItsGridsIsRepeatedAndAgrees) {
  for (const int jump : {5, 20, 60}) {
    Trace expected;
    for (const int ranks : {1, 3, 4}) {
      for (const int stage : {0, 2, 3}) {
        RunSettings s = exact_settings();
        s.ranks = ranks;
        s.stage = stage;
        test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
          const Trace trace = train_jumping(comm, s, jump);
          if (comm.rank() != 0) return;
          if (expected.digest == 0) expected = trace;
          EXPECT_EQ(trace, expected) << "jump " << jump << " stage " << stage << " ranks " << ranks;
          // Afterwards gradients are small again on grids that are coarse for some steps: exact, and no repeat.
          EXPECT_THAT(trace.repeats, ::testing::ElementsAre(1, 0, 0, jump > kGrowthBits ? 1 : 0, 0, 0));
        });
      }
    }
  }
}

TEST(ExactSums, GradientsThatAreNotFiniteAreNamedOnEveryRank) {
  for (const float odd : {INFINITY, NAN}) {
    const auto errors = test::errors_on_ranks(3, {}, [&](comm::Communicator& comm) {
      Awkward model;
      const RunSettings s = exact_settings(4);
      train_on(comm, model, s, [&](int64_t step, int64_t first, int64_t count) {
        MicroLoss micro = awkward_loss(model, s, step, first, count);
        if (step == 2 && first == 4) micro.loss = ops::scale(micro.loss, static_cast<double>(odd));
        return micro;
      });
    });
    for (const std::string& error : errors)
      EXPECT_THAT(error, ::testing::AllOf(HasSubstr("step 2: gradients are not finite"), HasSubstr("'tied'")));
  }
  const auto errors = test::errors_on_ranks(2, {}, [&](comm::Communicator& comm) {
    Awkward model;
    const RunSettings s = exact_settings(4);
    train_on(comm, model, s, [&](int64_t step, int64_t first, int64_t count) {
      MicroLoss micro = awkward_loss(model, s, step, first, count);
      if (first == 4) micro.sum = NAN;
      return micro;
    });
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("step 0: the loss of a micro-batch is not finite"));
}

TEST(ExactSums, AForwardThatChangesIsAnError) {
  const auto errors = test::errors_on_ranks(2, {}, [&](comm::Communicator& comm) {
    Awkward model;
    const RunSettings s = exact_settings(4);
    int calls = 0;
    train_on(comm, model, s, [&](int64_t step, int64_t first, int64_t count) {
      MicroLoss micro = awkward_loss(model, s, step, first, count);
      micro.loss = ops::scale(micro.loss, std::ldexp(1.0, 12 * calls++));
      return micro;
    });
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("step 0 computed twice gave different gradients"));
}

// |sum - exact| <= half a unit per micro-batch, and the rounding to float32.
TEST(ExactSums, StayWithinTheStatedBound) {
  constexpr int64_t kCount = 5000;
  constexpr int64_t kMicroBatches = 24;
  class Vector final : public nn::Module {
   public:
    Vector() : w(register_parameter("w", {kCount}, nn::Init::ones(), true)) {}
    nn::Parameter& w;
  } model;
  test::run_on_ranks(1, [&](comm::Communicator& comm) {
    const FlatLayout layout({&model.w}, 1);
    GradientGrids grids(model.parameters(), kMicroBatches);
    ExactGradients sums(layout, grids, layout.whole(), {.transient = true}, "w");
    Tensor out = Tensor::zeros({layout.padded_elements()});
    std::vector<long double> exact;
    float largest = 0;
    const auto attempt = [&] {
      grids.begin_attempt();
      exact.assign(kCount, 0);
      for (uint64_t m = 0; m < kMicroBatches; ++m) {
        Tensor gradient = Tensor::zeros({layout.padded_elements()});
        const Random random(7, "gradient", 0, m);
        for (uint64_t i = 0; i < kCount; ++i) {
          const auto v = static_cast<float>(std::ldexp(random.normal(i), -static_cast<int>(i % 40)));  // magnitudes over 40 binary orders
          gradient.data<float>()[i] = v;
          exact[i] += v;
          largest = std::max(largest, std::abs(v));
        }
        sums.add(gradient.storage(), DType::f32, {1});
      }
      sums.sums_to_reduce();
      sums.finish_reduce(false, out);
      return grids.agree(comm, 0, false);
    };
    EXPECT_EQ(attempt(), GradientGrids::Verdict::repeat);
    EXPECT_EQ(attempt(), GradientGrids::Verdict::exact);
    const double unit = std::ldexp(1.0, grids.grid(0));
    // The unit is 2^(10 + 5 - 62) of the largest magnitude, rounded up to a power of two.
    EXPECT_LE(unit, 2 * static_cast<double>(largest) * 0x1p-47);
    double worst = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const double error = std::abs(static_cast<double>(out.data<float>()[i] - exact[i]));
      EXPECT_LE(error, 0.5 * kMicroBatches * unit + 0x1p-24 * std::abs(static_cast<double>(exact[i]))) << i;
      worst = std::max(worst, error);
    }
    EXPECT_GT(worst, 0);
  });
}

TEST(ExactSums, StateContinuesWhereARunStopped) {
  test::run_on_ranks(1, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    const auto parameters = gpt.parameters();
    GradientGrids a(parameters, 8);
    a.note_magnitude(2, std::bit_cast<int32_t>(0.75f));
    EXPECT_EQ(a.agree(comm, 0, false), GradientGrids::Verdict::repeat);
    a.note_magnitude(2, std::bit_cast<int32_t>(0.75f));
    EXPECT_EQ(a.agree(comm, 0, false), GradientGrids::Verdict::exact);
    a.end_step();
    GradientGrids b(parameters, 8);
    b.set_state(a.state());
    for (size_t p = 0; p < parameters.size(); ++p) EXPECT_EQ(a.grid(p), b.grid(p));
    EXPECT_EQ(b.grid(2), 0 + kGrowthBits + 3 - 62);
    b.begin_attempt();
    b.end_step();
    EXPECT_EQ(b.grid(2), a.grid(2) - 1) << "exponents sink by one a step";
  });
}

// Gradient bytes per padded element: sums of 8 (of everything in stages 0 and 1) and float32 results of 4 (of the updated part).
TEST_P(ExactForEveryRankCount, StateBytesEqualTheClosedForms) {
  for (int stage = 0; stage < 4; ++stage) {
    for (const bool reduce_every : {false, true}) {
      RunSettings s = exact_settings(1);
      s.ranks = GetParam();
      s.stage = stage;
      s.accumulation.reduce_every = reduce_every;
      test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
        models::Transformer gpt(tiny_gpt());
        train_on(
            comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
            [&](ShardedModel& model, ShardedOptimizer&, int64_t) {
              const auto& memory = RankContext::current()->memory();
              const int64_t p = model.padded_elements();
              const int64_t updated = stage >= 1 ? p / s.ranks : p;
              EXPECT_EQ(memory.current_bytes(Category::parameter), 4 * (stage == 3 ? p / s.ranks : p));
              EXPECT_EQ(memory.current_bytes(Category::gradient), 4 * updated + (stage < 2 ? 8 * p : 0) + (reduce_every ? 8 * updated : 0));
              EXPECT_EQ(memory.current_bytes(Category::optimizer_state), 8 * updated);
              EXPECT_EQ(memory.unaccounted_bytes(), 0);
            });
      });
    }
  }
}

// Gradients travel as 8 bytes an element, weights as 4; magnitudes and scalars (three limbs a number) beside them.
TEST_P(ExactForEveryRankCount, WireBytesEqualTheClosedForms) {
  const auto n = static_cast<uint64_t>(GetParam());
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s = exact_settings(1);
    s.ranks = GetParam();
    s.stage = stage;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      uint64_t before = 0;
      train_on(
          comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
          [&](ShardedModel& model, ShardedOptimizer&, int64_t step) {
            model.settle();
            const auto stats = comm.wire_stats();
            const uint64_t now = stats.of(comm::CollectiveKind::reduce_scatter).sent_bytes +
                                 stats.of(comm::CollectiveKind::all_gather).sent_bytes +
                                 stats.of(comm::CollectiveKind::all_reduce).sent_bytes;
            if (step > 0) {
              uint64_t outer = 0, inner = 0;
              for (const auto& unit : model.units())
                (unit->outermost() ? outer : inner) += static_cast<uint64_t>(unit->layout().padded_elements());
              const uint64_t rounds = (15 + n - 1) / n;
              const uint64_t gradients = 8 * (outer + inner) * (stage == 0 ? 2 : 1);
              const uint64_t weights = stage == 0 ? 0 : stage < 3 ? 4 * (outer + inner) : 4 * (outer + 2 * rounds * inner);
              const uint64_t parameters = model.exact()->size();
              const uint64_t magnitudes = 4 * (parameters + 1), numbers = 3 * 8 * (parameters + 2);
              ASSERT_TRUE(magnitudes <= comm::kLongestGathered && numbers > comm::kLongestGathered) << parameters << " parameters";
              const uint64_t rest = now - before - (gradients + weights) / n * (n - 1) - (n - 1) * magnitudes;
              EXPECT_LE(rest, 2 * numbers) << "stage " << stage;  // a rank's chunks of them may be short or empty
              EXPECT_GE(rest + 2 * numbers / n + 64, 2 * numbers / n * (n - 1)) << "stage " << stage;
            }
            before = now;
          });
    });
  }
}

TEST(ExactSums, EveryCategoryPeakIsConstantAfterTheSecondStep) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s = exact_settings();
    s.ranks = 3;
    s.stage = stage;
    s.steps = 8;
    test::run_on_ranks(3, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      auto& memory = RankContext::current()->memory();
      MemoryPeak second;
      train_on(
          comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
          [&](ShardedModel&, ShardedOptimizer&, int64_t step) {
            if (step == 1) second = memory.peak();
            if (step >= 1) {
              EXPECT_EQ(memory.peak().by_category, second.by_category) << "stage " << stage << " step " << step;
            }
            memory.reset_peaks();
          });
    });
  }
}

}  // namespace
}  // namespace rz::optim
