// Hybrid sharding: shards within groups, replicas across them. Stages agree bit for bit within a grouping; states, bytes on the
// wire and checkpoints are what a group's size makes of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <mutex>

#include "runtime/autograd/engine.h"
#include "runtime/core/rank_context.h"
#include "tests/optim/awkward_model.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

using ::testing::HasSubstr;

struct Grouping {
  int ranks;
  int size;
};
void PrintTo(const Grouping& g, std::ostream* out) { *out << g.ranks << " ranks in groups of " << g.size; }

class EveryGrouping : public ::testing::TestWithParam<Grouping> {
 protected:
  static RunSettings settings() {
    RunSettings s;
    s.ranks = GetParam().ranks;
    s.group_size = GetParam().size;
    return s;
  }
};
// Shards that the number of groups divides, so that bytes have closed forms; three ranks and more on one axis show orders.
std::vector<Grouping> groupings() {
  if (test::kSanitized) return {{4, 2}};
  return {{2, 1}, {4, 2}, {6, 3}, {8, 2}, {4, 1}};
}
INSTANTIATE_TEST_SUITE_P(Groups, EveryGrouping, ::testing::ValuesIn(groupings()));

TEST_P(EveryGrouping, StagesGiveTheSameBits) {
  for (const comm::Order order : {comm::Order::ring, comm::Order::ordered}) {
    for (const Accumulation accumulation : {Accumulation{1, false}, Accumulation{2, false}, Accumulation{2, true}}) {
      RunSettings s = settings();
      s.order = order;
      s.batch = 17;
      s.accumulation = accumulation;
      const auto reference = train_gpt(s);
      for (int stage = 0; stage < 4; ++stage) {
        s.stage = stage;
        for (const Trace& trace : train_gpt(s)) EXPECT_EQ(trace, reference[0]) << "stage " << stage << " order " << comm::name(order);
      }
    }
  }
}

TEST_P(EveryGrouping, RankOrderedSumsDoNotDependOnBuckets) {
  RunSettings s = settings();
  s.order = comm::Order::ordered;
  const auto reference = train_gpt(s);
  for (const int64_t bucket_bytes : {1, 3000, 1 << 20}) {
    s.bucket_bytes = bucket_bytes;
    s.stage = 2;
    EXPECT_EQ(train_gpt(s)[0], reference[0]) << bucket_bytes;
  }
}

TEST_P(EveryGrouping, StagesGiveTheSameBitsInSixteenBits) {
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (const comm::Order order : {comm::Order::ring, comm::Order::ordered}) {
      RunSettings s = settings();
      s.order = order;
      s.precision = precision;
      s.scaling = {.enabled = precision.weights == DType::f16, .initial = 1024};
      s.accumulation = {2, order == comm::Order::ring};
      s.batch = 17;
      const auto reference = train_gpt(s);
      EXPECT_TRUE(reference[0].skipped.empty());
      for (int stage = 0; stage < 4; ++stage) {
        s.stage = stage;
        for (const Trace& trace : train_gpt(s))
          EXPECT_EQ(trace, reference[0]) << name(precision.weights) << " reduced in " << name(precision.reduce) << " stage " << stage << " order "
                                         << comm::name(order);
      }
    }
  }
}

TEST(Hybrid, AnOverflowInOneGroupIsSkippedInAll) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = 4;
    s.group_size = 2;
    s.stage = stage;
    s.steps = 5;
    s.precision.weights = DType::f16;
    s.scaling = {.enabled = true, .initial = 256};
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      gpt.set_dtype(DType::f16);
      bool overflows = false;
      autograd::register_hook(gpt.parameter("blocks.1.mlp.up.weight").value, [&](const Tensor& grad) {
        if (overflows) grad.data<f16>()[13] = f16(std::numeric_limits<float>::infinity());
        return grad;
      });
      std::vector<uint64_t> digests;
      const Trace trace = train_on(
          comm, gpt, s,
          [&](int64_t step, int64_t first, int64_t count) {
            overflows = step == 2 && comm.rank() == 3;
            return gpt_loss(gpt, s, step, first, count);
          },
          [&](ShardedModel& model, ShardedOptimizer&, int64_t) {
            model.check_replicas();
            digests.push_back(model.weights_digest());
          });
      EXPECT_THAT(trace.skipped, ::testing::ElementsAre(2)) << "stage " << stage << " rank " << comm.rank();
      EXPECT_EQ(digests[1], digests[2]);
      EXPECT_NE(digests[2], digests[3]);
    });
  }
}

TEST(Hybrid, GroupsAreAnOrderOfSums) {
  // The negative control: a + b + c + d and (a + b) + (c + d) differ, else the tests above would prove little.
  RunSettings s;
  s.ranks = 4;
  s.order = comm::Order::ordered;
  const auto plain = train_gpt(s);
  s.group_size = 2;
  EXPECT_NE(train_gpt(s)[0].digest, plain[0].digest);
  s.group_size = 4;
  EXPECT_EQ(train_gpt(s)[0], plain[0]);
}

TEST(Hybrid, AwkwardModelsAgreeAcrossStages) {
  RunSettings s;
  s.ranks = 6;
  s.group_size = 2;
  Trace reference;
  for (int stage = 0; stage < 4; ++stage) {
    s.stage = stage;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      Awkward model;
      const Trace trace = train_on(
          comm, model, s, [&](auto... a) { return awkward_loss(model, s, a...); },
          [](ShardedModel& m, ShardedOptimizer&, int64_t) { m.check_replicas(); });
      if (comm.rank() != 0) return;
      if (stage == 0) reference = trace;
      EXPECT_EQ(trace, reference) << "stage " << stage;
    });
  }
}

// 2 + 2 + 12 bytes, sharded over the group. With r bytes per element of the reduction: (k-1)/k r in the group and 2 (G-1)/G r/k
// across; weights travel as 2 bytes, and in the group alone.
TEST_P(EveryGrouping, SixteenBitStatesAndWireBytesEqualTheClosedForms) {
  const auto k = static_cast<uint64_t>(GetParam().size);
  const uint64_t groups = static_cast<uint64_t>(GetParam().ranks) / k;
  for (const Precision& precision : sixteen_bit_precisions()) {
    for (int stage = 0; stage < 4; ++stage) {
      RunSettings s = settings();
      s.stage = stage;
      s.steps = 3;
      s.precision = precision;
      s.scaling = {.enabled = precision.weights == DType::f16, .initial = 1024};
      test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
        models::Transformer gpt(tiny_gpt());
        comm::WireStats before;
        train_on(
            comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
            [&](ShardedModel& model, ShardedOptimizer&, int64_t step) {
              const auto& memory = RankContext::current()->memory();
              const int64_t p = model.padded_elements();
              const int64_t shard = p / GetParam().size;
              EXPECT_EQ(memory.current_bytes(Category::parameter), 2 * (stage == 3 ? shard : p));
              EXPECT_EQ(memory.current_bytes(Category::gradient), 2 * (stage >= 2 ? shard : p));
              EXPECT_EQ(memory.current_bytes(Category::optimizer_state), 12 * (stage >= 1 ? shard : p));

              model.settle();
              const comm::WireStats now = comm.wire_stats();
              uint64_t sent = 0;
              for (const auto kind : {comm::CollectiveKind::reduce_scatter, comm::CollectiveKind::all_gather, comm::CollectiveKind::all_reduce})
                sent += now.of(kind).sent_bytes - before.of(kind).sent_bytes;
              uint64_t outer = 0, inner = 0;
              for (const auto& unit : model.units())
                (unit->outermost() ? outer : inner) += static_cast<uint64_t>(unit->layout().padded_elements());
              const uint64_t r = size_bytes(precision.reduce);
              // Stage 0 gathers the reduced gradients, in their type; the others weights.
              const uint64_t gathered = stage == 0 ? r * (outer + inner) : 2 * (stage == 3 ? outer + 2 * inner : outer + inner);
              const uint64_t in_group = (r * (outer + inner) + gathered) / k * (k - 1);
              const uint64_t across = 2 * (r * (outer + inner) / k) / groups * (groups - 1);
              // And the three scalars of a step; before the first one the groups were made.
              if (step > 0) {
                EXPECT_EQ(sent - in_group - across, (k * groups - 1) * 3 * sizeof(double))
                    << "stage " << stage << " reduced in " << name(precision.reduce);
              }
              before = now;
            });
      });
    }
  }
}

TEST_P(EveryGrouping, StatesAndWireBytesEqualTheClosedForms) {
  const auto k = static_cast<uint64_t>(GetParam().size);
  const uint64_t groups = static_cast<uint64_t>(GetParam().ranks) / k;
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s = settings();
    s.stage = stage;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      uint64_t before = 0;
      train_on(
          comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
          [&](ShardedModel& model, ShardedOptimizer&, int64_t step) {
            const auto& memory = RankContext::current()->memory();
            const int64_t p = model.padded_elements();
            const int64_t shard = p / GetParam().size;
            EXPECT_EQ(memory.current_bytes(Category::parameter), 4 * (stage == 3 ? shard : p));
            EXPECT_EQ(memory.current_bytes(Category::gradient), 4 * (stage >= 2 ? shard : p));
            EXPECT_EQ(memory.current_bytes(Category::optimizer_state), 8 * (stage >= 1 ? shard : p));

            model.settle();
            const auto stats = comm.wire_stats();
            const uint64_t now = stats.of(comm::CollectiveKind::reduce_scatter).sent_bytes +
                                 stats.of(comm::CollectiveKind::all_gather).sent_bytes +
                                 stats.of(comm::CollectiveKind::all_reduce).sent_bytes;
            if (step > 0) {
              uint64_t outer = 0, inner = 0;
              for (const auto& unit : model.units())
                (unit->outermost() ? outer : inner) += static_cast<uint64_t>(unit->layout().padded_elements()) * 4;
              const uint64_t in_group = (stage < 3 ? 2 * (outer + inner) : 2 * outer + 3 * inner) / k * (k - 1);
              const uint64_t across = 2 * ((outer + inner) / k) / groups * (groups - 1);
              EXPECT_EQ(now - before - in_group - across, (k * groups - 1) * 3 * sizeof(double))
                  << "stage " << stage;  // and the three scalars of a step
            }
            before = now;
          });
    });
  }
}

TEST(Hybrid, ACheckpointHasEveryElementOnce) {
  for (int stage = 0; stage < 4; ++stage) {
    RunSettings s;
    s.ranks = 4;
    s.group_size = 2;
    s.stage = stage;
    s.steps = 1;
    std::mutex mutex;
    std::map<std::string, std::vector<int>> covered;
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      train_on(
          comm, gpt, s, [&](auto... a) { return gpt_loss(gpt, s, a...); },
          [&](ShardedModel&, ShardedOptimizer& optimizer, int64_t) {
            const std::lock_guard lock(mutex);
            for (const StateSlice& slice : optimizer.slices_to_save()) {
              EXPECT_LT(comm.rank(), 2);
              auto& times = covered[slice.name];
              times.resize(static_cast<size_t>(slice.full_shape.numel()));
              for (int64_t i = slice.begin; i < slice.end; ++i) ++times[static_cast<size_t>(i)];
            }
          });
    });
    models::Transformer gpt(tiny_gpt());
    EXPECT_EQ(covered.size(), 3 * gpt.parameters().size());
    for (const auto& [name, times] : covered) EXPECT_THAT(times, ::testing::Each(1)) << name << " stage " << stage;
  }
}

TEST(Hybrid, AGroupThatDoesNotDivideIsRefused) {
  for (const int64_t size : {3, 5, 8, -1}) {
    const auto errors = test::errors_on_ranks(4, {}, [&](comm::Communicator& comm) {
      models::Transformer gpt(tiny_gpt());
      ShardingOptions options;
      options.group_size = size;
      ShardedModel sharded(gpt, comm, options);
    });
    for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr(fmt::format("groups of {} do not divide 4 ranks", size)));
  }
}

}  // namespace
}  // namespace rz::optim
