#include "runtime/ops/embedding.h"

#include "tests/ops/compare.h"

namespace rz {
namespace {

using namespace rz::test;

TEST(Embedding, LooksUpRows) {
  const Tensor w = Tensor::of<float>({3, 2}, {0, 1, 10, 11, 20, 21});
  const Tensor y = ops::embedding(Tensor::of<int32_t>({2, 2}, {2, 0, 1, 2}), w);
  EXPECT_EQ(y.shape(), (Shape{2, 2, 2}));
  EXPECT_EQ(y.to_vector<float>(), (std::vector<float>{20, 21, 0, 1, 10, 11, 20, 21}));
  EXPECT_EQ(ops::embedding(Tensor::of<int64_t>({1}, {1}), w).to_vector<float>(), (std::vector<float>{10, 11}));
  EXPECT_EQ(ops::embedding(Tensor::of<int64_t>({}, {1}), w).shape(), (Shape{2}));
  EXPECT_EQ(ops::embedding(Tensor::zeros({0, 3}, DType::i64), w).shape(), (Shape{0, 3, 2}));
}

TEST(Embedding, Gradients) {
  const Tensor ids = Tensor::of<int32_t>({2, 3}, {1, 4, 1, 0, 1, 4});
  expect_gradients_match([&](const auto& in) { return ops::embedding(ids, in[0]); }, {random_tensor({6, 3}, 1)}, {.name = "embedding"});
  const Tensor turned = Tensor::of<int64_t>({3, 2}, {1, 4, 1, 0, 1, 4}).view_transpose(0, 1);
  expect_gradients_match([&](const auto& in) { return ops::embedding(turned, in[0]); }, {random_tensor({6, 3}, 1)},
                         {.name = "strided ids"});
}

TEST(Embedding, ScattersLikeTheReferenceAtEveryWidth) {
  for (const int64_t width : {1, 16, 100, 300, 513}) {
    constexpr int64_t kRows = 40;
    constexpr int64_t kCount = 500;
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < kCount; ++i) ids.push_back(i % 3 == 0 ? 7 : i * 31 % (kRows - 5));
    const Tensor grad = random_tensor({kCount, width}, 4, -1, 1, DType::f32);
    Values want(static_cast<size_t>(kRows * width), 0);
    const Values g = values_of(grad);
    for (int64_t i = 0; i < kCount; ++i)
      for (int64_t c = 0; c < width; ++c)
        want[static_cast<size_t>(ids[static_cast<size_t>(i)] * width + c)] += g[static_cast<size_t>(i * width + c)];
    Tensor w = leaf(Tensor::zeros({kRows, width}));
    // Twice: the first contribution must clear the rows that no id names, the second must add.
    for (int pass = 1; pass <= 2; ++pass) {
      autograd::backward(ops::embedding(Tensor::of<int64_t>({kCount}, ids), w), {.grad = grad});
      Values sum = want;
      for (double& v : sum) v *= pass;
      EXPECT_LT(largest_error(autograd::grad_of(w), sum), 1e-5) << "width " << width << ", pass " << pass;
    }
  }
}

TEST(Embedding, SixteenBitSumsDoNotStall) {
  // 1 added 1000 times in bfloat16 stops at 256; in float32 it reaches 1000.
  Tensor w = leaf(Tensor::zeros({2, 1}, DType::bf16));
  autograd::backward(ops::embedding(Tensor::zeros({1000}, DType::i32), w), {.grad = Tensor::full({1000, 1}, 1, DType::bf16)});
  EXPECT_EQ(values_of(autograd::grad_of(w)), (Values{1000, 0}));
}

TEST(Embedding, SameBitsForAnyThreads) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 3000; ++i) ids.push_back(i * 17 % 5);
  const Tensor grad = random_tensor({3000, 200}, 4, -1, 1, DType::f32);
  expect_same_bits_for_any_threads([&] {
    Tensor w = leaf(random_tensor({9, 200}, 1, -1, 1, DType::f32));
    const Tensor y = ops::embedding(Tensor::of<int32_t>({3000}, ids), w);
    autograd::backward(y, {.grad = grad});
    return std::vector<Tensor>{y, autograd::grad_of(w)};
  });
}

TEST(Embedding, Errors) {
  const Tensor w = Tensor::zeros({3, 2});
  expect_error_names([&] { ops::embedding(Tensor::of<int32_t>({3}, {0, 3, 1}), w); }, {"id 3 at position 1", "3 rows"});
  expect_error_names([&] { ops::embedding(Tensor::of<int64_t>({2}, {0, -1}), w); }, {"id -1 at position 1"});
  expect_error_names([&] { ops::embedding(Tensor::zeros({3}), w); }, {"f32[3]"});
  expect_error_names([&] { ops::embedding(Tensor::zeros({3}, DType::i32), Tensor::zeros({3})); }, {"f32[3]"});
}

}  // namespace
}  // namespace rz
