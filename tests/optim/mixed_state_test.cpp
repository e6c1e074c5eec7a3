// Mixed precision over time: loss scaling decided by all ranks alike, errors that name what is not finite, the weight average,
// and checkpoints that go on bit for bit, in another stage, at another number of ranks, in another precision.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>

#include "runtime/autograd/engine.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Precision kBf16 = {DType::bf16, DType::f32};
constexpr Precision kF16 = {DType::f16, DType::f32};

// --- loss scaling ------------------------------------------------------------------------------------------------------------

TEST(LossScaler, GrowsWhileNothingOverflowsAndShrinksWhenItDoes) {
  LossScaler scaler({.enabled = true, .initial = 8, .growth_interval = 2, .smallest = 2, .largest = 16});
  scaler.applied();
  EXPECT_EQ(scaler.scale(), 8);
  scaler.applied();
  EXPECT_EQ(scaler.scale(), 16);
  for (int i = 0; i < 4; ++i) scaler.applied();
  EXPECT_EQ(scaler.scale(), 16) << "beyond the largest";
  scaler.applied();
  scaler.skipped();
  EXPECT_EQ(scaler.scale(), 8);
  scaler.applied();
  EXPECT_EQ(scaler.scale(), 8) << "good steps are counted from the overflow";
  scaler.skipped();
  scaler.skipped();
  EXPECT_EQ(scaler.scale(), 2);
  EXPECT_FALSE(scaler.can_skip());
  EXPECT_THROW(scaler.skipped(), Error);
  EXPECT_EQ(scaler.skipped_steps(), 3);
}

TEST(LossScaler, OffItNeitherScalesNorSkips) {
  LossScaler scaler({});
  for (int i = 0; i < 5000; ++i) scaler.applied();
  EXPECT_EQ(scaler.scale(), 1);
  EXPECT_FALSE(scaler.can_skip());
}

TEST(LossScaler, RefusesSettingsThatMakeNoSense) {
  for (const LossScaling& bad : {LossScaling{.enabled = true, .initial = 0.5},
                                 {.enabled = true, .growth = 1},
                                 {.enabled = true, .backoff = 1},
                                 {.enabled = true, .backoff = 0},
                                 {.enabled = true, .growth_interval = 0},
                                 {.enabled = true, .smallest = 0}})
    EXPECT_THROW(LossScaler{bad}, ConfigError);
}

TEST(LossScaler, PowersOfTwoChangeNoBitWhereNothingUnderflows) {
  RunSettings s;
  s.precision = kBf16;  // the exponent range of float32: scaled or not, the same mantissas
  s.ranks = 3;
  const auto reference = train_gpt(s);
  s.scaling.enabled = true;
  for (const double scale : {2.0, 1024.0}) {
    s.scaling.initial = scale;
    EXPECT_EQ(train_gpt(s)[0], reference[0]) << scale;
  }
}

// One element of one rank's gradient overflows in step 2: it ends in the shard of one rank, and all ranks must skip.
std::vector<Trace> train_with_overflow(RunSettings s, std::vector<std::vector<uint64_t>>& digests, std::atomic<int>& overflowed_shards) {
  s.precision = kF16;
  s.scaling.enabled = true;
  s.scaling.initial = 256;
  s.steps = 5;
  std::vector<Trace> traces(static_cast<size_t>(s.ranks));
  digests.assign(static_cast<size_t>(s.ranks), {});
  test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
    const auto rank = static_cast<size_t>(comm.rank());
    models::Transformer gpt(tiny_gpt());
    gpt.set_dtype(DType::f16);
    int64_t step_now = 0;
    autograd::register_hook(gpt.parameter("blocks.1.mlp.up.weight").value, [&](const Tensor& grad) {
      if (step_now == 2 && comm.rank() == comm.size() - 1) grad.data<f16>()[13] = f16(std::numeric_limits<float>::infinity());
      return grad;
    });
    traces[rank] = train_on(
        comm, gpt, s,
        [&](int64_t step, int64_t first, int64_t count) {
          step_now = step;
          return gpt_loss(gpt, s, step, first, count);
        },
        [&](ShardedModel& model, ShardedOptimizer&, int64_t step) {
          if (step == 2 && !std::isfinite(model.shard_sum_of_squares())) ++overflowed_shards;
          digests[rank].push_back(model.weights_digest());
        });
  });
  return traces;
}

TEST(LossScaling, AnOverflowOnOneRankIsSkippedByAllAndLeavesNoTrace) {
  for (int stage = 0; stage < 4; ++stage) {
    for (const int ranks : {1, 2, 3, 5}) {
      RunSettings s;
      s.stage = stage;
      s.ranks = ranks;
      std::vector<std::vector<uint64_t>> digests;
      std::atomic<int> overflowed_shards = 0;
      const auto traces = train_with_overflow(s, digests, overflowed_shards);
      EXPECT_EQ(overflowed_shards, 1) << "only one rank sees it: a decision of each rank by itself would part them";
      for (int r = 0; r < ranks; ++r) {
        const auto& trace = traces[static_cast<size_t>(r)];
        const auto& digest = digests[static_cast<size_t>(r)];
        EXPECT_THAT(trace.skipped, ElementsAre(2)) << "stage " << stage << " rank " << r << "/" << ranks;
        EXPECT_EQ(digest, digests[0]);
        EXPECT_NE(digest[0], digest[1]);
        EXPECT_EQ(digest[1], digest[2]) << "a skipped step changed weights";
        EXPECT_NE(digest[2], digest[3]) << "training did not go on";
        EXPECT_TRUE(std::isfinite(trace.losses.back()) && std::isfinite(trace.norms.back()));
      }
    }
  }
}

TEST(LossScaling, TooLargeAStartIsFoundDownTo) {
  RunSettings s;
  s.ranks = 3;
  s.stage = 2;
  s.precision = kF16;
  s.steps = 24;
  s.scaling = {.enabled = true, .initial = 16777216.0 * 16, .smallest = 1, .largest = 16777216.0 * 16};
  const auto traces = train_gpt(s);
  EXPECT_THAT(traces[0].skipped, ::testing::Contains(0));
  EXPECT_LT(traces[0].skipped.size(), 20u);
  for (const auto& trace : traces) {
    EXPECT_EQ(trace.skipped, traces[0].skipped);
    EXPECT_EQ(trace.losses, traces[0].losses);
    EXPECT_EQ(trace.digest, traces[0].digest);
  }
  EXPECT_TRUE(std::isfinite(traces[0].norms.back()));
}

TEST(LossScaling, SmallGradientsSurviveThroughIt) {
  // A loss of a millionth of the usual size: without a scale its f16 gradients vanish.
  for (const bool scaled : {false, true}) {
    RunSettings s;
    s.ranks = 2;
    s.precision = kF16;
    s.steps = 1;
    s.scaling = {.enabled = scaled, .initial = 1048576};
    test::run_on_ranks(2, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      const Trace trace = train_on(comm, gpt, s, [&](int64_t step, int64_t first, int64_t count) {
        const auto& c = gpt.config();
        auto r = gpt.loss(test_tokens(step, first, count, c.context, c.vocabulary, 0),
                          test_tokens(step, first, count, c.context, c.vocabulary, 1), 1e-6 / static_cast<double>(s.batch * c.context));
        return MicroLoss{std::move(r.loss), r.sum, r.count};
      });
      if (scaled)
        EXPECT_GT(trace.norms[0], 1e-8);
      else
        EXPECT_LT(trace.norms[0], 1e-8);
    });
  }
}

// --- errors ------------------------------------------------------------------------------------------------------------------

// Every rank's error after an infinity was planted in one element of one rank's gradient.
std::vector<std::string> errors_of(const RunSettings& s) {
  std::vector<std::string> errors(static_cast<size_t>(s.ranks));
  test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    gpt.set_dtype(s.precision.weights);
    autograd::register_hook(gpt.parameter("blocks.1.mlp.up.weight").value, [&](const Tensor& grad) {
      const float inf = std::numeric_limits<float>::infinity();
      if (comm.rank() != 0) return grad;
      if (grad.dtype() == DType::f32)
        grad.data<float>()[13] = inf;
      else
        grad.data<bf16>()[13] = bf16(inf);
      return grad;
    });
    try {
      train_on(comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); });
      ADD_FAILURE() << "an infinite gradient was used";
    } catch (const Error& e) {
      errors[static_cast<size_t>(comm.rank())] = e.what();
    }
  });
  return errors;
}

TEST(MixedErrors, AGradientThatIsNotFiniteIsNamedOnTheRankThatHasIt) {
  for (const Precision& precision : {Precision{}, kBf16}) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings s;
      s.ranks = 3;
      s.stage = stage;
      s.precision = precision;
      int named = 0;
      for (const std::string& error : errors_of(s)) {
        EXPECT_THAT(error, HasSubstr("step 0: loss"));
        if (error.find("is finite") != std::string::npos) continue;
        ++named;
        EXPECT_THAT(error, AllOf(HasSubstr("'blocks.1.mlp.up.weight' of unit blocks.1"), HasSubstr("element 13 is inf")));
      }
      EXPECT_EQ(named, 1) << "stage " << stage;
    }
  }
}

// --- average and checkpoints -------------------------------------------------------------------------------------------------

// All of a training state, by name, as a checkpoint would hold it.
struct State {
  std::map<std::string, std::vector<float>> tensors;
  LossScalerState scaler;
};

// A run of steps [begin, end) on every rank, from `start` where it is given; what it leaves is in `state`.
struct Leg {
  Trace trace;
  State state;
};

Leg train_leg(RunSettings s, int64_t begin, int64_t end, const State* start, bool freeze = true) {
  Leg leg;
  std::mutex mutex;
  test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
    models::Transformer gpt(tiny_gpt());
    if (freeze) gpt.parameter("blocks.1.mlp.up.weight").trainable = false;
    ShardingOptions options;
    options.policy = policy_of_stage(s.stage);
    options.precision = s.precision;
    options.seed = start == nullptr ? 3 : 4;  // a resumed run must not live on its own initial values
    ShardedModel model(gpt, comm, options);
    ShardedOptimizer optimizer(model, test_rule(), false, s.ema_decay);
    Trainer trainer(model, optimizer, s.schedule, s.clip_norm, s.scaling);
    if (start != nullptr) {
      const auto slices = optimizer.slices_to_load();
      for (const StateSlice& slice : slices) {
        const auto& from = start->tensors.at(slice.name);
        std::copy(from.begin() + slice.begin, from.begin() + slice.end, slice.data);
      }
      optimizer.finish_load(slices);
      trainer.loss_scaler().restore(start->scaler);
    }
    Trace trace;
    const int64_t first = share_begin(s.batch, comm.rank(), comm.size());
    const int64_t count = share_begin(s.batch, comm.rank() + 1, comm.size()) - first;
    for (int64_t step = begin; step < end; ++step) {
      const auto result = trainer.step(step, [&](int64_t) { return gpt_loss(gpt, s, step, first, count); });
      trace.losses.push_back(result.loss);
      trace.norms.push_back(result.gradient_norm);
      if (result.skipped) trace.skipped.push_back(step);
    }
    trace.digest = model.weights_digest();
    const std::lock_guard lock(mutex);
    if (comm.rank() == 0) leg.trace = trace, leg.state.scaler = trainer.loss_scaler().state();
    for (const StateSlice& slice : optimizer.slices_to_save()) {
      auto& to = leg.state.tensors[slice.name];
      to.resize(static_cast<size_t>(slice.full_shape.numel()), std::numeric_limits<float>::quiet_NaN());
      std::copy_n(slice.data, slice.end - slice.begin, to.begin() + slice.begin);
    }
  });
  return leg;
}

TEST(MixedCheckpoint, GoesOnBitForBitInAnyStage) {
  for (const Precision& precision : {Precision{}, kBf16, kF16, Precision{DType::f16, DType::f16}}) {
    RunSettings s;
    s.ranks = 3;
    s.precision = precision;
    s.ema_decay = 0.9;
    // The first steps overflow, so that the state of the scaler matters too.
    s.scaling = {.enabled = precision.weights == DType::f16, .initial = 16777216.0 * 16, .growth_interval = 2, .largest = 16777216.0 * 16};
    const Leg whole = train_leg(s, 0, 14, nullptr);
    if (s.scaling.enabled) {
      EXPECT_FALSE(whole.trace.skipped.empty());
    }
    for (int stage = 0; stage < 4; ++stage) {
      s.stage = stage;
      const Leg first = train_leg(s, 0, 9, nullptr);
      s.stage = 3 - stage;
      const Leg second = train_leg(s, 9, 14, &first.state);
      EXPECT_EQ(second.trace.digest, whole.trace.digest) << name(precision.weights) << " stage " << stage;
      EXPECT_EQ(second.trace.losses, std::vector<double>(whole.trace.losses.begin() + 9, whole.trace.losses.end()));
      EXPECT_EQ(second.state.tensors, whole.state.tensors);
      EXPECT_EQ(second.state.scaler.scale, whole.state.scaler.scale);
      EXPECT_EQ(second.state.scaler.skipped_steps, whole.state.scaler.skipped_steps);
    }
  }
}

TEST(MixedCheckpoint, AnyPrecisionResumesFromAnyOther) {
  RunSettings s;
  s.ranks = 2;
  const Leg trained = train_leg(s, 0, 4, nullptr);
  for (const Precision& precision : {kBf16, kF16}) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings other = s;
      other.ranks = 3;
      other.stage = stage;
      other.precision = precision;
      // Loaded and saved without a step: the master weights are the float32 ones, to the bit. Frozen weights have no master.
      const Leg loaded = train_leg(other, 4, 4, &trained.state);
      for (const auto& [name, values] : trained.state.tensors) {
        auto expected = values;
        if (name == "model.blocks.1.mlp.up.weight")
          for (float& v : expected) v = precision.weights == DType::bf16 ? static_cast<float>(bf16(v)) : static_cast<float>(f16(v));
        EXPECT_EQ(loaded.state.tensors.at(name), expected) << name;
      }
      const Leg on = train_leg(other, 4, 6, &trained.state);
      const Leg reference = train_leg(s, 4, 6, &trained.state);
      EXPECT_NEAR(on.trace.losses[0], reference.trace.losses[0], 0.01) << "stage " << stage;
      // And back to float32.
      EXPECT_NEAR(train_leg(s, 6, 7, &on.state).trace.losses[0], train_leg(s, 6, 7, &reference.state).trace.losses[0], 0.02);
    }
  }
}

TEST(MixedAverage, FollowsTheMasterAndSwapsBack) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = 3;
    s.stage = stage;
    s.ema_decay = 0.5;
    s.precision = kBf16;
    test::run_on_ranks(3, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      std::map<std::string, std::vector<float>> before;
      train_on(
          comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
          [&](ShardedModel& m, ShardedOptimizer& o, int64_t step) {
            std::map<std::string, std::vector<float>> now;
            for (const StateSlice& slice : o.slices_to_save())
              now[fmt::format("{} {}", slice.name, slice.begin)].assign(slice.data, slice.data + (slice.end - slice.begin));
            if (step > 0) {
              for (const auto& [name, average] : now) {
                if (!name.starts_with("average.")) continue;
                const std::string weight = "model." + name.substr(std::string("average.").size());
                for (size_t i = 0; i < average.size(); ++i)
                  EXPECT_EQ(average[i], 0.5f * before.at(name)[i] + 0.5f * now.at(weight)[i]) << name;
              }
            }
            before = now;
            const uint64_t weights = m.weights_digest();
            o.swap_average();
            EXPECT_NE(m.weights_digest(), weights);
            m.check_replicas();
            o.swap_average();
            EXPECT_EQ(m.weights_digest(), weights);
          });
    });
  }
}

}  // namespace
}  // namespace rz::optim
