// ZeRO: every policy gives the same bits; memory of the states and bytes on the wire equal their closed forms.
#include "optim/shard/sharded_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "runtime/autograd/engine.h"
#include "runtime/core/rank_context.h"
#include "tests/optim/awkward_model.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

using ::testing::HasSubstr;

class EveryRankCount : public ::testing::TestWithParam<int> {};

// Two ranks cannot reveal an order of sums (a + b = b + a): 3, 4, 5 and 7 can.
INSTANTIATE_TEST_SUITE_P(Ranks, EveryRankCount, ::testing::ValuesIn(test::rank_counts()));

TEST_P(EveryRankCount, StagesGiveTheSameBits) {
  for (const comm::Order order : {comm::Order::ring, comm::Order::ordered}) {
    RunSettings s;
    s.ranks = GetParam();
    s.order = order;
    const auto reference = train_gpt(s);
    EXPECT_GT(reference[0].losses.front(), reference[0].losses.back() - 1.0);
    for (int stage = 0; stage < 4; ++stage) {
      s.stage = stage;
      for (const auto& trace : train_gpt(s)) EXPECT_EQ(trace, reference[0]) << "stage " << stage << " order " << comm::name(order);
    }
  }
}

TEST_P(EveryRankCount, StagesGiveTheSameBitsWithAccumulation) {
  for (const bool reduce_every : {false, true}) {
    RunSettings s;
    s.ranks = GetParam();
    s.accumulation = {2, reduce_every};
    const auto reference = train_gpt(s);
    for (int stage = 1; stage < 4; ++stage) {
      s.stage = stage;
      for (const auto& trace : train_gpt(s)) EXPECT_EQ(trace, reference[0]) << "stage " << stage << " reduce_every " << reduce_every;
    }
  }
}

TEST_P(EveryRankCount, RankOrderedSumsDoNotDependOnBuckets) {
  RunSettings s;
  s.ranks = GetParam();
  s.order = comm::Order::ordered;
  const auto reference = train_gpt(s);
  for (const int64_t bucket_bytes : {1, 1000, 3000, 1 << 20}) {
    for (const int stage : {0, 3}) {
      s.bucket_bytes = bucket_bytes;
      s.stage = stage;
      const auto traces = train_gpt(s);
      EXPECT_EQ(traces[0].digest, reference[0].digest) << "bucket " << bucket_bytes << " stage " << stage;
      EXPECT_EQ(traces[0].losses, reference[0].losses);
      EXPECT_EQ(traces[0].norms, reference[0].norms);
    }
  }
}

TEST(Sharding, BitsDependOnTheOrderOfSums) {
  // The negative control of the tests above: were another order of sums invisible, they would prove nothing.
  RunSettings s;
  s.ranks = 3;
  const auto ring = train_gpt(s);
  s.order = comm::Order::ordered;
  EXPECT_NE(train_gpt(s)[0].digest, ring[0].digest);
}

TEST(Sharding, PrefetchChangesNoBit) {
  RunSettings s;
  s.ranks = 3;
  s.stage = 3;
  const auto reference = train_gpt(s);
  for (const int prefetch : {0, 2, 7}) {
    s.prefetch = prefetch;
    EXPECT_EQ(train_gpt(s)[0], reference[0]) << prefetch;
  }
}

TEST(Sharding, LlamaAndGptConfigurationsAgreeAcrossStages) {
  models::TransformerConfig c = tiny_gpt();
  c.positions = models::Positions::rope;
  c.norm = nn::NormKind::rms_norm;
  c.mlp = models::MlpKind::swiglu;
  c.width = 16;
  c.heads = 4;
  c.kv_heads = 2;
  c.bias = false;
  c.tied_head = false;
  RunSettings s;
  s.ranks = 3;
  const auto reference = train_gpt(s, c);
  for (int stage = 1; stage < 4; ++stage) {
    s.stage = stage;
    EXPECT_EQ(train_gpt(s, c)[0], reference[0]) << "stage " << stage;
  }
}

TEST(Sharding, RecomputationChangesNoBitAndSavesActivations) {
  const auto peak_activations = [](models::Recompute recompute, int stage, Trace& trace) {
    models::TransformerConfig c = tiny_gpt();
    c.layers = 6;
    c.dropout = 0.1;
    c.recompute = recompute;
    RunSettings s;
    s.ranks = 3;
    s.stage = stage;
    int64_t peak = 0;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(c);
      const Trace own = train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); });
      if (comm.rank() != 0) return;
      trace = own;
      peak = RankContext::current()->memory().peak().by_category[static_cast<size_t>(Category::activation)];
    });
    return peak;
  };
  Trace reference;
  const int64_t all = peak_activations(models::Recompute::none, 0, reference);
  std::map<models::Recompute, int64_t> peaks;
  for (const auto recompute : {models::Recompute::selective, models::Recompute::full, models::Recompute::sqrt}) {
    for (const int stage : {0, 2, 3}) {
      Trace trace;
      peaks[recompute] = peak_activations(recompute, stage, trace);
      EXPECT_EQ(trace, reference) << "recompute " << static_cast<int>(recompute) << " stage " << stage;
    }
  }
  EXPECT_LT(peaks[models::Recompute::selective], all);
  EXPECT_LT(peaks[models::Recompute::full], all / 2);
  EXPECT_LT(peaks[models::Recompute::sqrt], all * 2 / 3);
}

TEST(Sharding, LossesAgreeAcrossRankCounts) {
  RunSettings s;
  s.steps = 6;
  const auto reference = train_gpt(s);
  for (const int ranks : {2, 3, 5}) {
    s.ranks = ranks;
    const auto traces = train_gpt(s);
    for (size_t i = 0; i < reference[0].losses.size(); ++i)
      EXPECT_NEAR(traces[0].losses[i], reference[0].losses[i], 1e-5 * reference[0].losses[i]) << ranks << " ranks, step " << i;
  }
}

TEST(Sharding, ReplicasStayEqual) {
  RunSettings s;
  s.ranks = 3;
  test::run_on_ranks(3, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); }, [](ShardedModel& m, ShardedOptimizer&, int64_t) { m.check_replicas(); });
  });
}

TEST(Sharding, AnOddReplicaIsNamed) {
  test::run_on_ranks(3, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    ShardedModel sharded(gpt, comm, {});
    sharded.check_replicas();
    if (comm.rank() == 1) gpt.parameter("blocks.1.mlp.up.weight").value.data<float>()[5] += 1e-6f;
    try {
      sharded.check_replicas();
      ADD_FAILURE() << "a changed replica was not noticed";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("rank 1 has"));
    }
  });
}

// States per category against the closed forms on padded sizes (float32 Adam: 4 + 4 + 8 bytes), exactly.
TEST_P(EveryRankCount, StateBytesEqualTheClosedForms) {
  const int ranks = GetParam();
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = ranks;
    s.stage = stage;
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); }, [&](ShardedModel& model, ShardedOptimizer&, int64_t) {
        const auto& memory = RankContext::current()->memory();
        const int64_t p = model.padded_elements();
        EXPECT_EQ(p % ranks, 0);
        const int64_t shard = p / ranks;
        EXPECT_EQ(memory.current_bytes(Category::parameter), 4 * (stage == 3 ? shard : p));
        EXPECT_EQ(memory.current_bytes(Category::gradient), 4 * (stage >= 2 ? shard : p));
        EXPECT_EQ(memory.current_bytes(Category::optimizer_state), 8 * (stage >= 1 ? shard : p));
        EXPECT_EQ(memory.unaccounted_bytes(), 0);
      });
    });
  }
}

// Bytes sent per step: 2(N-1)/N of the padded payload in stages 0-2; in stage 3 blocks are gathered twice and the outermost
// unit once.
TEST_P(EveryRankCount, WireBytesEqualTheClosedForms) {
  const int ranks = GetParam();
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = ranks;
    s.stage = stage;
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      uint64_t before = 0;
      train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); }, [&](ShardedModel& model, ShardedOptimizer&, int64_t step) {
        model.settle();
        const auto stats = comm.wire_stats();
        const uint64_t now = stats.of(comm::CollectiveKind::reduce_scatter).sent_bytes + stats.of(comm::CollectiveKind::all_gather).sent_bytes +
                             stats.of(comm::CollectiveKind::all_reduce).sent_bytes;
        if (step > 0) {
          uint64_t outer = 0, inner = 0;
          for (const auto& unit : model.units()) (unit->outermost() ? outer : inner) += static_cast<uint64_t>(unit->layout().padded_elements()) * 4;
          const auto n = static_cast<uint64_t>(ranks);
          const uint64_t passes = stage < 3 ? 2 * (outer + inner) : 2 * outer + 3 * inner;
          // The three scalars of a step (norm, loss, count) travel in one all-reduce of their own.
          const uint64_t scalars = now - before - passes / n * (n - 1);
          EXPECT_EQ(scalars, (n - 1) * 3 * sizeof(double)) << "stage " << stage;
        }
        before = now;
      });
    });
  }
}

TEST(Sharding, EveryCategoryPeakIsConstantAfterTheSecondStep) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = 3;
    s.stage = stage;
    s.steps = 12;
    test::run_on_ranks(3, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      auto& memory = RankContext::current()->memory();
      MemoryPeak second;
      train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); }, [&](ShardedModel&, ShardedOptimizer&, int64_t step) {
        if (step == 1) second = memory.peak();
        if (step >= 1) {
          EXPECT_EQ(memory.peak().by_category, second.by_category) << "stage " << stage << " step " << step;
        }
        memory.reset_peaks();
      });
    });
  }
}

TEST_P(EveryRankCount, TiedFrozenUnusedAndTinyParametersAgreeAcrossStages) {
  RunSettings s;
  s.ranks = GetParam();
  Trace reference;
  for (int stage = 0; stage < 4; ++stage) {
    s.stage = stage;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      Awkward model;
      const Trace trace = train_on(comm, model, s, [&](auto... a) { return awkward_loss(model, s, a...); }, [&](ShardedModel& m, ShardedOptimizer&, int64_t step) {
        m.visit_weights([&](const nn::Parameter& p) {
          if (p.name != "second.w") return;
          // Frozen: still its initial value.
          std::vector<float> initial(static_cast<size_t>(p.numel()));
          nn::initial_values(p, 3, 0, p.numel(), initial.data());
          EXPECT_EQ(p.value.to_vector<float>(), initial) << "step " << step;
        });
      });
      if (comm.rank() != 0) return;
      if (stage == 0) reference = trace;
      EXPECT_EQ(trace, reference) << "stage " << stage;
    });
  }
}

TEST(Sharding, AverageFollowsTheWeights) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = 3;
    s.stage = stage;
    s.ema_decay = 0.5;
    test::run_on_ranks(3, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      std::vector<float> average;
      train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); }, [&](ShardedModel& m, ShardedOptimizer& o, int64_t step) {
        const auto read = [&] {
          std::vector<float> all;
          m.visit_weights([&](const nn::Parameter& p) { for (float v : p.value.to_vector<float>()) all.push_back(v); });
          return all;
        };
        const auto weights = read();
        if (step == 0) {
          average.clear();
          m.visit_weights([&](const nn::Parameter& p) {
            std::vector<float> initial(static_cast<size_t>(p.numel()));
            nn::initial_values(p, 3, 0, p.numel(), initial.data());
            average.insert(average.end(), initial.begin(), initial.end());
          });
        }
        for (size_t i = 0; i < average.size(); ++i) average[i] = 0.5f * average[i] + 0.5f * weights[i];
        o.swap_average();
        EXPECT_EQ(read(), average) << "stage " << stage << " step " << step;
        o.swap_average();
        EXPECT_EQ(read(), weights);
      });
    });
  }
}

TEST(Sharding, ReadingAShardedWeightNamesIt) {
  test::run_on_ranks(2, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    ShardingOptions options;
    options.policy = policy_of_stage(3);
    ShardedModel sharded(gpt, comm, options);
    try {
      (void)gpt.parameter("blocks.1.mlp.up.weight").value.data<float>();
      ADD_FAILURE() << "a sharded weight could be read";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), ::testing::AllOf(HasSubstr("blocks.1"), HasSubstr("released")));
    }
  });
}

TEST(Sharding, RefusesAnUnknownStage) {
  EXPECT_THROW(policy_of_stage(4), ConfigError);
  EXPECT_THROW(policy_of_stage(-1), ConfigError);
}

TEST(FlatLayout, PadsToShardsAndKeepsOrder) {
  models::Transformer gpt(tiny_gpt());
  for (const int ranks : {1, 2, 3, 5, 7, 64, 1000}) {
    for (const auto& plan : plan_buckets(gpt, 0)) {
      const FlatLayout layout(plan.parameters, ranks);
      EXPECT_EQ(layout.padded_elements() % (kAlignElements * ranks), 0);
      int64_t end = 0, gaps = 0;
      for (const auto& entry : layout.entries()) {
        EXPECT_EQ(entry.offset % kAlignElements, 0);
        EXPECT_GE(entry.offset, end);
        end = entry.range().end;
      }
      for (const Range& gap : layout.padding()) gaps += gap.length();
      EXPECT_EQ(gaps + layout.payload_elements(), layout.padded_elements());
      EXPECT_LT(layout.padded_elements() - end, kAlignElements * ranks + kAlignElements);
    }
  }
}

TEST(FlatLayout, BucketsMergeAndCutUnits) {
  models::Transformer gpt(tiny_gpt());
  EXPECT_EQ(plan_buckets(gpt, 0).size(), 4u);                           // outermost and three blocks
  EXPECT_EQ(plan_buckets(gpt, 1).size(), gpt.parameters().size());      // one parameter each
  const auto everything = plan_buckets(gpt, int64_t{1} << 40);
  ASSERT_EQ(everything.size(), 2u);
  EXPECT_TRUE(everything[0].outermost);
  EXPECT_EQ(everything[1].name, "blocks.0 .. blocks.2");
  size_t parameters = 0;
  for (const auto& bucket : plan_buckets(gpt, 2000)) parameters += bucket.parameters.size();
  EXPECT_EQ(parameters, gpt.parameters().size());
}

}  // namespace
}  // namespace rz::optim
