#include "runtime/ops/dropout.h"

#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;
using ops::DropoutKey;

DropoutKey key(uint64_t first_sample = 0) { return {.seed = 5, .place = "blocks.1.mlp", .step = 3, .first_sample = first_sample}; }

TEST(Dropout, DropsAndRescales) {
  const Tensor x = Tensor::full({100, 1000}, 3);
  for (const double p : {0.1, 0.5, 0.9}) {
    int64_t dropped = 0;
    for (const double v : values_of(ops::dropout(x, p, key(), true))) {
      if (v == 0)
        ++dropped;
      else
        ASSERT_NEAR(v, 3 / (1 - p), 1e-5);
    }
    EXPECT_NEAR(static_cast<double>(dropped) / 1e5, p, 0.006);  // four standard deviations
  }
}

TEST(Dropout, IsTheIdentityWhereItShouldBe) {
  const Tensor x = random_tensor({2, 3}, 1);
  EXPECT_TRUE(ops::dropout(x, 0.5, key(), false).same(x));
  EXPECT_TRUE(ops::dropout(x, 0, key(), true).same(x));
}

TEST(Dropout, DoesNotDependOnHowSamplesAreSpread) {
  const Tensor x = random_tensor({6, 7, 5}, 1);
  const Values whole = values_of(ops::dropout(x, 0.4, key(10), true));
  Values parts;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 4}, {4, 6}})
    for (const double v : values_of(ops::dropout(x.view_slice(0, begin, end), 0.4, key(10 + static_cast<uint64_t>(begin)), true)))
      parts.push_back(v);
  EXPECT_EQ(whole, parts);
}

TEST(Dropout, EveryPartOfTheKeyCounts) {
  const Tensor x = Tensor::full({4, 50}, 1);
  const Values base = values_of(ops::dropout(x, 0.5, key(), true));
  EXPECT_EQ(base, values_of(ops::dropout(x, 0.5, key(), true)));
  for (DropoutKey other : {key(1), key(), key(), key()}) {
    static int which = 0;
    if (which == 1) other.step = 4;
    if (which == 2) other.seed = 6;
    if (which == 3) other.place = "blocks.2.mlp";
    ++which;
    EXPECT_NE(base, values_of(ops::dropout(x, 0.5, other, true)));
  }
}

TEST(Dropout, Gradients) {
  expect_gradients_match([](const auto& in) { return ops::dropout(in[0], 0.3, key(), true); }, {random_tensor({3, 7}, 1)},
                         {.name = "dropout"});
}

TEST(Dropout, SameBitsForAnyThreads) {
  const Tensor x = random_tensor({3, 10007}, 2, -1, 1, DType::f32);
  expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{ops::dropout(x, 0.25, key(), true)}; });
}

TEST(Dropout, Errors) {
  expect_error_names([] { ops::dropout(Tensor::zeros({2}), 1.0, key(), true); }, {"1"});
  expect_error_names([] { ops::dropout(Tensor::zeros({2}), -0.5, key(), true); }, {"-0.5"});
  expect_error_names([] { ops::dropout(Tensor::zeros({2}, DType::i32), 0.5, key(), true); }, {"i32[2]"});
}

}  // namespace
}  // namespace rz
