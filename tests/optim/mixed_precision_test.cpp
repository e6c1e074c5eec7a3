// Training in bf16 and f16: the same bits in every stage, bytes of states and wires against closed forms, learning beside
// float32, and what the float32 master weights are for. Loss scaling and checkpoints: mixed_state_test.cpp.
#include <gtest/gtest.h>

#include <numeric>

#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

std::string text(const Precision& p) { return fmt::format("{} reduced in {}", name(p.weights), name(p.reduce)); }

RunSettings settings(const Precision& precision, int ranks) {
  RunSettings s;
  s.ranks = ranks;
  s.precision = precision;
  s.scaling.enabled = precision.weights == DType::f16;
  s.scaling.initial = 1024;
  return s;
}

class MixedRanks : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, MixedRanks, ::testing::ValuesIn(test::rank_counts()));

TEST_P(MixedRanks, StagesGiveTheSameBits) {
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (const comm::Order order : {comm::Order::ring, comm::Order::ordered}) {
      RunSettings s = settings(precision, GetParam());
      s.order = order;
      const auto reference = train_gpt(s);
      EXPECT_TRUE(reference[0].skipped.empty());
      for (int stage = 0; stage < 4; ++stage) {
        s.stage = stage;
        for (const auto& trace : train_gpt(s))
          EXPECT_EQ(trace, reference[0]) << text(precision) << " stage " << stage << " order " << comm::name(order);
      }
    }
  }
}

TEST_P(MixedRanks, StagesGiveTheSameBitsWithAccumulation) {
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (const bool reduce_every : {false, true}) {
      RunSettings s = settings(precision, GetParam());
      s.accumulation = {2, reduce_every};
      const auto reference = train_gpt(s);
      for (int stage = 1; stage < 4; ++stage) {
        s.stage = stage;
        EXPECT_EQ(train_gpt(s)[0], reference[0]) << text(precision) << " stage " << stage << " reduce_every " << reduce_every;
      }
    }
  }
}

TEST(Mixed, RankOrderedSumsDoNotDependOnBuckets) {
  for (const Precision& precision : sixteen_bit_precisions()) {
    RunSettings s = settings(precision, 3);
    s.order = comm::Order::ordered;
    const auto reference = train_gpt(s);
    for (const int64_t bucket_bytes : {1, 1500, 1 << 20}) {
      for (const int stage : {0, 3}) {
        s.bucket_bytes = bucket_bytes;
        s.stage = stage;
        EXPECT_EQ(train_gpt(s)[0].digest, reference[0].digest) << text(precision) << " bucket " << bucket_bytes << " stage " << stage;
      }
    }
  }
}

TEST(Mixed, RecomputationAndPrefetchChangeNoBit) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    RunSettings s = settings({dtype, DType::f32}, 3);
    const auto reference = train_gpt(s);
    for (const auto recompute : {models::Recompute::selective, models::Recompute::full, models::Recompute::sqrt}) {
      for (const int stage : {0, 3}) {
        models::TransformerConfig config = tiny_gpt();
        config.recompute = recompute;
        s.stage = stage;
        s.prefetch = stage == 3 ? 2 : 1;
        EXPECT_EQ(train_gpt(s, config)[0], reference[0])
            << name(dtype) << " recompute " << static_cast<int>(recompute) << " stage " << stage;
      }
    }
  }
}

TEST(Mixed, BitsDependOnThePrecisionAndOnTheTypeOfTheReduction) {
  // The negative control of the tests above: they would also pass if every setting computed in float32.
  std::vector<uint64_t> digests = {train_gpt(settings({}, 3))[0].digest};
  for (const Precision& precision : sixteen_bit_precisions()) digests.push_back(train_gpt(settings(precision, 3))[0].digest);
  for (size_t i = 0; i < digests.size(); ++i)
    for (size_t j = 0; j < i; ++j) EXPECT_NE(digests[i], digests[j]) << i << " and " << j;
}

// 2 + 2 + 12 bytes on padded sizes, exactly: float32 master weights and Adam's two moments are the optimizer's state.
TEST_P(MixedRanks, StateBytesEqualTheClosedForms) {
  const int ranks = GetParam();
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings s = settings(precision, ranks);
      s.stage = stage;
      s.steps = 2;
      test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
        models::Transformer gpt(tiny_gpt());
        train_on(
            comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
            [&](ShardedModel& model, ShardedOptimizer&, int64_t) {
              const auto& memory = RankContext::current()->memory();
              const int64_t p = model.padded_elements();
              EXPECT_EQ(p % ranks, 0);
              const int64_t shard = p / ranks;
              EXPECT_EQ(memory.current_bytes(Category::parameter), 2 * (stage == 3 ? shard : p));
              EXPECT_EQ(memory.current_bytes(Category::gradient), 2 * (stage >= 2 ? shard : p));
              EXPECT_EQ(memory.current_bytes(Category::optimizer_state), 12 * (stage >= 1 ? shard : p));
              const int64_t states = memory.current_bytes(Category::parameter) + memory.current_bytes(Category::gradient) +
                                     memory.current_bytes(Category::optimizer_state);
              const int64_t closed_form[] = {16 * p, 4 * p + 12 * shard, 2 * p + 14 * shard, 16 * shard};
              EXPECT_EQ(states, closed_form[stage]) << "stage " << stage;
              EXPECT_EQ(memory.unaccounted_bytes(), 0);
            });
      });
    }
  }
}

// With r bytes per element of the reduction: all-reduce sends 2 (N-1)/N r, reduce-scatter (N-1)/N r; weights travel as 2 bytes.
TEST_P(MixedRanks, WireBytesEqualTheClosedForms) {
  const int ranks = GetParam();
  const auto n = static_cast<uint64_t>(ranks);
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings s = settings(precision, ranks);
      s.stage = stage;
      s.steps = 3;
      test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
        models::Transformer gpt(tiny_gpt());
        comm::WireStats before = comm.wire_stats();
        train_on(
            comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
            [&](ShardedModel& model, ShardedOptimizer&, int64_t) {
              model.settle();
              const comm::WireStats now = comm.wire_stats();
              const auto sent = [&](comm::CollectiveKind kind) { return now.of(kind).sent_bytes - before.of(kind).sent_bytes; };
              uint64_t outer = 0, inner = 0;
              for (const auto& unit : model.units())
                (unit->outermost() ? outer : inner) += static_cast<uint64_t>(unit->layout().padded_elements());
              const uint64_t reduce_bytes = size_bytes(precision.reduce);
              const uint64_t one_reduction = (outer + inner) / n * (n - 1) * reduce_bytes;
              const uint64_t gathered = stage == 0 ? 0 : stage == 3 ? outer + 2 * inner : outer + inner;
              EXPECT_EQ(sent(comm::CollectiveKind::reduce_scatter), stage == 0 ? 0 : one_reduction);
              EXPECT_EQ(sent(comm::CollectiveKind::all_gather), gathered / n * (n - 1) * 2);
              // The three scalars of a step (norm, loss, count) travel in one all-reduce of their own.
              const uint64_t scalars = sent(comm::CollectiveKind::all_reduce) - (stage == 0 ? 2 * one_reduction : 0);
              EXPECT_EQ(scalars, (n - 1) * 3 * sizeof(double)) << "stage " << stage;
              before = now;
            });
      });
    }
  }
}

TEST(Mixed, EveryCategoryPeakIsConstantAfterTheSecondStep) {
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings s = settings(precision, 3);
      s.stage = stage;
      s.steps = 6;
      test::run_on_ranks(3, [&](comm::Communicator& comm) {
        models::Transformer gpt(tiny_gpt());
        auto& memory = RankContext::current()->memory();
        MemoryPeak second;
        train_on(
            comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
            [&](ShardedModel&, ShardedOptimizer&, int64_t step) {
              if (step == 1) second = memory.peak();
              if (step >= 1) {
                EXPECT_EQ(memory.peak().by_category, second.by_category) << text(precision) << " stage " << stage << " step " << step;
              }
              memory.reset_peaks();
            });
      });
    }
  }
}

// --- learning ----------------------------------------------------------------------------------------------------------------

// Mean loss of the last 20 of 300 steps on one fixed batch, which a model that learns can memorize.
double memorized_loss(const Precision& precision) {
  RunSettings s = settings(precision, 2);
  s.stage = 2;
  s.steps = 300;
  s.clip_norm = 1;
  s.schedule = {Schedule::Kind::constant, 0.01, 0.01, 10, 300};
  double mean = 0;
  test::run_on_ranks(2, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    const Trace trace = train_on(comm, gpt, s, [&](int64_t, int64_t first, int64_t count) { return gpt_loss(gpt, s, 0, first, count); });
    if (comm.rank() == 0) mean = std::accumulate(trace.losses.end() - 20, trace.losses.end(), 0.0) / 20;
  });
  return mean;
}

TEST(Mixed, LearnsLikeFloat32) {
  const double reference = memorized_loss({});
  EXPECT_LT(reference, 0.2);  // from ln 11 = 2.4
  for (const Precision& precision : sixteen_bit_precisions()) {
    const double loss = memorized_loss(precision);
    RecordProperty(text(precision), fmt::format("{:.4f} (float32 {:.4f})", loss, reference));
    // Measured: within 0.001.
    EXPECT_NEAR(loss, reference, 0.01) << text(precision);
  }
}

// --- master weights ----------------------------------------------------------------------------------------------------------

// Counts, of the norms' weights, which start at 1, those that training moved. The mutation without a master forgets after each step
// what the 16-bit weights do not hold.
TEST(Mixed, MasterWeightsKeepSmallUpdates) {
  RunSettings s = settings({DType::bf16, DType::f32}, 1);
  s.schedule = {Schedule::Kind::constant, 1e-4, 1e-4, 0, 60};
  const auto moved = [&](int64_t steps, bool master) {
    int64_t count = 0;
    s.steps = steps;
    test::run_on_ranks(1, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      // Always the same batch: steps in one direction.
      const auto forward = [&](int64_t, int64_t first, int64_t batch) { return gpt_loss(gpt, s, 0, first, batch); };
      train_on(comm, gpt, s, forward, [&](ShardedModel& model, ShardedOptimizer& optimizer, int64_t step) {
        if (!master)
          for (const StateSlice& slice : optimizer.slices_to_load())
            if (slice.name.starts_with("model."))
              for (int64_t i = 0; i < slice.end - slice.begin; ++i) slice.data[i] = static_cast<float>(bf16(slice.data[i]));
        if (step + 1 < steps) return;
        model.visit_weights([&](const nn::Parameter& p) {
          if (p.name.find("norm") == std::string::npos || !p.name.ends_with("weight")) return;
          for (const float v : p.value.to_vector<float>()) count += v != 1.0f;
        });
      });
    });
    return count;
  };
  // A step of 1e-4 from 1 is a twentieth of what rounds to the next bf16 below: one moves nothing, 200 do - if remembered.
  EXPECT_EQ(moved(1, true), 0);
  EXPECT_EQ(moved(200, false), 0) << "small updates survived without a master: the control proves nothing";
  EXPECT_GT(moved(200, true), 30);
}

TEST(Mixed, WeightsAreTheRoundedMasterFromTheStart) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    test::run_on_ranks(3, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      ShardingOptions options;
      options.policy = policy_of_stage(3);
      options.precision.weights = dtype;
      options.seed = 3;
      ShardedModel sharded(gpt, comm, options);
      sharded.visit_weights([&](const nn::Parameter& p) {
        EXPECT_EQ(p.value.dtype(), dtype);
        std::vector<float> initial(static_cast<size_t>(p.numel()));
        nn::initial_values(p, 3, 0, p.numel(), initial.data());
        for (float& v : initial) v = dtype == DType::bf16 ? static_cast<float>(bf16(v)) : static_cast<float>(f16(v));
        EXPECT_EQ(p.value.to_vector<float>(), initial) << p.name;
      });
    });
  }
}

TEST(Mixed, RefusesTypesThatDoNotFit) {
  test::run_on_ranks(1, [&](comm::Communicator& comm) {
    for (const Precision precision :
         {Precision{DType::f64, DType::f32}, {DType::f32, DType::bf16}, {DType::bf16, DType::f16}, {DType::i32, DType::i32}}) {
      models::Transformer gpt(tiny_gpt());
      ShardingOptions options;
      options.precision = precision;
      EXPECT_THROW(ShardedModel(gpt, comm, options), ConfigError) << text(precision);
    }
  });
}

// --- the fused update --------------------------------------------------------------------------------------------------------

// Reading a 16-bit gradient and writing 16-bit weights changes no bit of the float32 update, however the range is cut.
TEST(Mixed, FusedUpdateEqualsTheFloat32OneForAnyCut) {
  constexpr int64_t kElements = 5003;
  const auto values = [&](const char* key, float scale) {
    std::vector<float> out(kElements);
    for (int64_t i = 0; i < kElements; ++i) out[static_cast<size_t>(i)] = scale * Random(1, key).normal(static_cast<uint64_t>(i));
    return out;
  };
  std::vector<std::unique_ptr<Optimizer>> rules;
  rules.push_back(make_adam({0.9, 0.95, 1e-8, 0.1, true}));
  rules.push_back(make_sgd({0.9, true, 0.1}));
  rules.push_back(make_sgd({0, false, 0.1}));
  auto& elementwise = *backend({}).elementwise;
  for (const auto& rule : rules) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      Tensor narrow = Tensor::zeros({kElements}, dtype), wide = Tensor::zeros({kElements});
      elementwise.copy(Tensor::of({kElements}, values("g", 0.1f)), narrow);
      elementwise.copy(narrow, wide);
      const auto run = [&](const Tensor& gradient, bool round, const std::vector<int64_t>& cuts, Tensor& rounded) {
        Tensor weight = Tensor::of({kElements}, values("w", 1.0f));
        rounded = Tensor::zeros({kElements}, dtype);
        std::vector<Tensor> state;
        for (const auto& name : rule->state_names()) state.push_back(Tensor::zeros({kElements}, DType::f32, name));
        for (int64_t step = 1; step <= 3; ++step) {
          for (size_t c = 0; c + 1 < cuts.size(); ++c) {
            const auto part = [&](const Tensor& t) { return t.view_slice(0, cuts[c], cuts[c + 1]); };
            Tensor w = part(weight);
            std::vector<Tensor> s;
            for (const Tensor& t : state) s.push_back(part(t));
            rule->update({step, 0.01, 0.5, true, round ? part(rounded) : Tensor()}, w, part(gradient), s);
          }
        }
        return weight.to_vector<float>();
      };
      Tensor none, rounded, cut;
      const auto reference = run(wide, false, {0, kElements}, none);
      EXPECT_EQ(run(narrow, true, {0, kElements}, rounded), reference) << rule->name() << " " << name(dtype);
      EXPECT_EQ(run(narrow, true, {0, 1, 17, 1000, 2047, 2049, 5000, kElements}, cut), reference) << rule->name() << " " << name(dtype);
      Tensor expected = Tensor::zeros({kElements}, dtype);
      elementwise.copy(Tensor::of({kElements}, reference), expected);
      EXPECT_EQ(rounded.to_vector<float>(), expected.to_vector<float>());
      EXPECT_EQ(cut.to_vector<float>(), expected.to_vector<float>());
      // Norms: the squares of the widened gradient, in the same order.
      EXPECT_EQ(backend({}).optimizer->sum_of_squares(narrow), backend({}).optimizer->sum_of_squares(wide));
    }
  }
}

}  // namespace
}  // namespace rz::optim
