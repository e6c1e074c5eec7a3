// The image networks under sharding: every stage gives the same bits, recomputation changes none, and a dry run predicts every byte.
#include <gtest/gtest.h>

#include "comm/dry.h"
#include "models/diffusion/dit.h"
#include "models/diffusion/unet.h"
#include "optim/plan/reading.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/reduction.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {
namespace {

namespace diffusion = models::diffusion;
using Maker = std::function<std::unique_ptr<diffusion::ImageNetwork>()>;

diffusion::UNetConfig tiny_unet() {
  diffusion::UNetConfig c;
  c.image = {8, 8, 1};
  c.patch = 2;
  c.width = 8;
  c.multipliers = {1, 2};
  c.blocks = 1;
  c.attention_heights = {2};
  c.head_width = 8;
  c.dropout = 0.1;
  c.classes = 3;
  return c;
}

diffusion::DiTConfig tiny_dit() {
  diffusion::DiTConfig c;
  c.image = {8, 8, 1};
  c.patch = 4;
  c.layers = 2;
  c.width = 12;
  c.heads = 3;
  c.dropout = 0.1;
  c.classes = 3;
  return c;
}

Maker maker(const diffusion::UNetConfig& c) {
  return [c] { return std::make_unique<diffusion::UNet>(c); };
}
Maker maker(const diffusion::DiTConfig& c) {
  return [c] { return std::make_unique<diffusion::DiT>(c); };
}

// Sum of squared errors of denoising images that are a pure function of (step, global sample).
MicroLoss image_loss(diffusion::ImageNetwork& network, const RunSettings& s, int64_t step, int64_t first, int64_t count) {
  const auto pixels = static_cast<uint64_t>(network.image().height * network.image().width);
  std::vector<float> clean, noisy, noise;
  std::vector<int32_t> labels;
  for (int64_t b = first; b < first + count; ++b) {
    const Random random(9, "images", static_cast<uint64_t>(step), static_cast<uint64_t>(b));
    noise.push_back(999 * random.uniform(4 * pixels));
    labels.push_back(static_cast<int32_t>(random.below(4 * pixels + 1, 4)));  // the last means no label
    for (uint64_t i = 0; i < pixels; ++i) {
      clean.push_back(random.uniform(i));
      noisy.push_back(clean.back() + noise.back() / 999 * random.normal(2 * pixels + i));
    }
  }
  const Shape shape{count, network.image().height, network.image().width, 1};
  Tensor x, target, levels, ids;
  {
    CategoryScope category(Category::input);
    x = Tensor::of(shape, noisy), target = Tensor::of(shape, clean), levels = Tensor::of({count}, noise), ids = Tensor::of({count}, labels);
  }
  const Tensor y = network.forward(x, levels, {ids}, {3, static_cast<uint64_t>(step), static_cast<uint64_t>(first)});
  const double items = static_cast<double>(s.batch) * static_cast<double>(pixels);
  Tensor loss = ops::scale(ops::sum(ops::square(ops::sub(y, target))), 1 / items);
  const double sum = loss.item() * items;
  return {std::move(loss), sum, count * static_cast<int64_t>(pixels)};
}

std::vector<Trace> train_network(const RunSettings& s, const Maker& make) {
  std::vector<Trace> traces(static_cast<size_t>(s.ranks));
  test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) {
    const auto network = make();
    traces[static_cast<size_t>(comm.rank())] = train_on(
        comm, *network, s, [&](int64_t step, int64_t first, int64_t count) { return image_loss(*network, s, step, first, count); });
  });
  return traces;
}

RunSettings settings(int ranks, int stage) {
  RunSettings s;
  s.ranks = ranks;
  s.stage = stage;
  s.batch = 7;
  return s;
}

class NetworksOnRanks : public ::testing::TestWithParam<std::tuple<bool, int>> {
 protected:
  Maker make() const { return std::get<0>(GetParam()) ? maker(tiny_dit()) : maker(tiny_unet()); }
  int ranks() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(All, NetworksOnRanks, ::testing::Combine(::testing::Bool(), ::testing::Values(1, 2, 3)), [](const auto& info) {
  return fmt::format("{}_on{}", std::get<0>(info.param) ? "dit" : "unet", std::get<1>(info.param));
});

TEST_P(NetworksOnRanks, StagesGiveTheSameBits) {
  for (const int64_t bucket_bytes : {0, 3000}) {
    RunSettings s = settings(ranks(), 0);
    s.bucket_bytes = bucket_bytes;
    const auto reference = train_network(s, make());
    EXPECT_LT(reference[0].losses.back(), reference[0].losses.front());
    for (s.stage = 0; s.stage < 4; ++s.stage)
      for (const auto& trace : train_network(s, make())) EXPECT_EQ(trace, reference[0]) << "stage " << s.stage;
  }
}

TEST_P(NetworksOnRanks, StagesGiveTheSameBitsWithAccumulation) {
  RunSettings s = settings(ranks(), 0);
  s.accumulation = {2, false};
  const auto reference = train_network(s, make());
  for (s.stage = 1; s.stage < 4; ++s.stage)
    for (const auto& trace : train_network(s, make())) EXPECT_EQ(trace, reference[0]) << "stage " << s.stage;
}

TEST_P(NetworksOnRanks, RecomputationChangesNoBit) {
  auto unet = tiny_unet();
  auto dit = tiny_dit();
  unet.recompute = dit.recompute = true;
  for (const int stage : {0, 3}) {
    const RunSettings s = settings(ranks(), stage);
    const auto kept = train_network(s, make()), again = train_network(s, std::get<0>(GetParam()) ? maker(dit) : maker(unet));
    EXPECT_TRUE(again == kept) << "stage " << stage;
  }
}

TEST_P(NetworksOnRanks, ExactSumsDoNotDependOnTheRanks) {
  RunSettings one = settings(1, 0);
  one.micro_batch = 2;
  RunSettings s = one;
  s.ranks = ranks();
  s.stage = 3;
  EXPECT_EQ(train_network(s, make())[0].digest, train_network(one, make())[0].digest);
}

TEST_P(NetworksOnRanks, ADryRunPredictsEveryByte) {
  const auto run = [&](comm::Communicator& comm, const RunSettings& s) {
    const auto network = make()();
    train_on(comm, *network, s, [&](int64_t step, int64_t first, int64_t count) { return image_loss(*network, s, step, first, count); });
    return read_memory(RankContext::current()->memory());
  };
  for (int stage = 0; stage < 4; ++stage) {
    const RunSettings s = settings(ranks(), stage);
    std::vector<MemoryReading> measured(static_cast<size_t>(s.ranks));
    test::run_on_ranks(s.ranks, [&](comm::Communicator& comm) { measured[static_cast<size_t>(comm.rank())] = run(comm, s); });
    for (int rank = 0; rank < s.ranks; ++rank) {
      const RankContextScope scope(RankContext::make_dry(rank, 1));
      comm::Communicator comm = comm::make_dry_communicator(rank, s.ranks);
      const MemoryReading predicted = run(comm, s);
      const MemoryReading& seen = measured[static_cast<size_t>(rank)];
      EXPECT_EQ(seen.unaccounted_bytes, 0);
      EXPECT_EQ(predicted.peak.total, seen.peak.total) << "stage " << stage << " rank " << rank;
      for (size_t c = 0; c < kCategories; ++c)
        EXPECT_EQ(predicted.peak.by_category[c], seen.peak.by_category[c]) << "stage " << stage << ", " << name(static_cast<Category>(c));
      EXPECT_GT(seen.peak.by_category[static_cast<size_t>(Category::activation)], 0);
    }
  }
}

TEST(NetworksOnRanks, RecomputationSavesActivations) {
  const auto activations = [](const Maker& make) {
    int64_t peak = 0;
    test::run_on_ranks(1, [&](comm::Communicator& comm) {
      const auto network = make();
      const RunSettings s = settings(1, 0);
      train_on(comm, *network, s, [&](int64_t step, int64_t first, int64_t count) { return image_loss(*network, s, step, first, count); });
      peak = read_memory(RankContext::current()->memory()).peak.by_category[static_cast<size_t>(Category::activation)];
    });
    return peak;
  };
  auto unet = tiny_unet();
  auto dit = tiny_dit();
  unet.blocks = 3, dit.layers = 6;
  const int64_t unet_kept = activations(maker(unet)), dit_kept = activations(maker(dit));
  unet.recompute = dit.recompute = true;
  EXPECT_LT(activations(maker(unet)), unet_kept * 3 / 4);
  EXPECT_LT(activations(maker(dit)), dit_kept / 2);
}

TEST(NetworksOnRanks, TheBitsDoNotDependOnThreads) {
  for (const Maker& make : {maker(tiny_unet()), maker(tiny_dit())}) {
    std::vector<uint64_t> digests;
    for (const int threads : {1, 3}) {
      test::run_on_ranks(1, [&](comm::Communicator& comm) {
        RankContext::current()->set_threads(threads);
        const auto network = make();
        const RunSettings s = settings(1, 0);
        digests.push_back(train_on(comm, *network, s, [&](int64_t step, int64_t first, int64_t count) {
                            return image_loss(*network, s, step, first, count);
                          }).digest);
      });
    }
    EXPECT_EQ(digests[0], digests[1]);
  }
}

}  // namespace
}  // namespace rz::optim
