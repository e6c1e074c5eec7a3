// Every operation of the Transformer in bf16 and f16, forward and backward: against float64 on the same rounded inputs, and into a
// sink that keeps gradients in another type than the weights.
#include <gtest/gtest.h>

#include <map>

#include "runtime/kernels/backend.h"
#include "runtime/ops/attention.h"
#include "runtime/ops/dropout.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/shape.h"
#include "tests/ops/compare.h"

namespace rz::test {
namespace {

using Tensors = std::vector<Tensor>;

struct HalfCase {
  std::string name;
  TensorFunction op;
  std::vector<Shape> inputs;
  double bound = 4;  // of the error relative to the largest element, in units of the type's rounding (2^-8, 2^-11)
};

Tensor tokens(Shape shape, int32_t symbols) {
  std::vector<int32_t> ids(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7 + 3) % static_cast<size_t>(symbols));
  return Tensor::of<int32_t>(shape, ids);
}

ops::RopeTable table_for(const Tensor& x, int64_t positions, int64_t width) {
  return ops::make_rope_table(positions, width, 100, compute_dtype(x.dtype()));
}

std::vector<HalfCase> half_cases() {
  std::vector<HalfCase> rows;
  rows.push_back({"matmul", [](const Tensors& in) { return ops::matmul(in[0], in[1]); }, {{3, 37, 50}, {3, 50, 29}}});
  rows.push_back({"linear with bias", [](const Tensors& in) { return ops::linear(in[0], in[1], in[2]); }, {{2, 19, 40}, {70, 40}, {70}}});
  rows.push_back({"linear, k beyond one block", [](const Tensors& in) { return ops::linear(in[0], in[1], {}); }, {{5, 900}, {33, 900}}});
  rows.push_back({"layer norm", [](const Tensors& in) { return ops::layer_norm(in[0], in[1], in[2], 1e-5); }, {{6, 50}, {50}, {50}}, 8});
  rows.push_back({"rms norm", [](const Tensors& in) { return ops::rms_norm(in[0], in[1], 1e-5); }, {{6, 50}, {50}}, 8});
  rows.push_back({"embedding", [](const Tensors& in) { return ops::embedding(tokens({3, 8}, 9), in[0]); }, {{9, 20}}});
  rows.push_back(
      {"attention", [](const Tensors& in) { return ops::attention_qkv(in[0], {.heads = 4, .kv_heads = 2}); }, {{2, 53, 8 * 16}}, 8});
  rows.push_back({"attention with rotary positions",
                  [](const Tensors& in) {
                    const auto table = table_for(in[0], 53, 16);
                    return ops::attention_qkv(in[0], {.heads = 4, .kv_heads = 2, .rope = &table});
                  },
                  {{2, 53, 8 * 16}},
                  8});
  rows.push_back({"rope", [](const Tensors& in) { return ops::rope(in[0], table_for(in[0], 12, 8), 3); }, {{2, 9, 3, 8}}});
  rows.push_back({"gelu", [](const Tensors& in) { return ops::gelu(in[0]); }, {{7, 33}}});
  rows.push_back({"silu_mul", [](const Tensors& in) { return ops::silu_mul(in[0], in[1]); }, {{7, 33}, {7, 33}}});
  rows.push_back({"dropout", [](const Tensors& in) { return ops::dropout(in[0], 0.3, {1, "here", 2, 5}, true); }, {{7, 33}}});
  rows.push_back({"residual", [](const Tensors& in) { return ops::add(in[0], in[1]); }, {{7, 33}, {7, 33}}});
  rows.push_back(
      {"learned positions", [](const Tensors& in) { return ops::add(in[0], ops::slice(in[1], 0, 2, 7)); }, {{4, 5, 20}, {9, 20}}});
  rows.push_back({"cross entropy", [](const Tensors& in) { return ops::cross_entropy(in[0], tokens({11}, 30)).loss; }, {{11, 30}}});
  rows.push_back({"cross entropy over its logits",
                  [](const Tensors& in) {
                    // The logits must be an op's output: their gradient is written over them.
                    return ops::cross_entropy(ops::scale(in[0], 1), tokens({11}, 30), {.overwrite_logits = true}).loss;
                  },
                  {{11, 30}}});
  rows.push_back({"chunked head",
                  [](const Tensors& in) { return ops::linear_cross_entropy(in[0], in[1], tokens({50}, 30), {}, 13).loss; },
                  {{50, 24}, {30, 24}}});
  return rows;
}

Tensor converted(const Tensor& t, DType dtype) {
  Tensor out = Tensor::empty(t.shape(), dtype);
  backend({}).elementwise->copy(t, out);
  return out;
}

// A sink with gradients of type `dtype`.
class TypedSink final : public autograd::GradientSink {
 public:
  explicit TypedSink(DType dtype) : dtype_(dtype) {}
  autograd::GradientTarget target(autograd::AutogradMeta& leaf) override {
    Tensor& t = gradients[&leaf];
    const bool first = !t.defined();
    if (first) t = Tensor::full(leaf.shape, 77, dtype_);
    return {t, !first};
  }
  void ready(autograd::AutogradMeta&) override {}
  std::map<autograd::AutogradMeta*, Tensor> gradients;

 private:
  DType dtype_;
};

struct Outcome {
  Values value;
  std::vector<Values> gradients;
};

// Gradients of `backwards` identical passes, in `sink_dtype`.
Outcome run(const HalfCase& row, const Tensors& inputs, const Tensor& weights, DType sink_dtype, int backwards = 1) {
  Tensors leaves;
  for (const Tensor& t : inputs) leaves.push_back(leaf(t.view_alias()));
  TypedSink sink(sink_dtype);
  Outcome outcome;
  for (int i = 0; i < backwards; ++i) {
    const Tensor out = row.op(leaves);
    outcome.value = values_of(out);
    autograd::backward(out, {.grad = converted(weights, out.dtype()), .sink = &sink});
  }
  for (Tensor& l : leaves) outcome.gradients.push_back(values_of(sink.gradients.at(autograd::find_meta(l))));
  return outcome;
}

// Relative to the largest element; infinite for a NaN.
double error_against(const Values& got, const Values& want) {
  double largest = 1e-30;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  Values scaled_got = got, scaled_want = want;
  for (double& v : scaled_got) v /= largest;
  for (double& v : scaled_want) v /= largest;
  return largest_error(scaled_got, scaled_want);
}

TEST(HalfPrecision, TransformerOpsMatchDouble) {
  for (const HalfCase& row : half_cases()) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      const double unit = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
      Tensors narrow, wide;
      uint64_t seed = 3;
      for (const Shape& shape : row.inputs) {
        narrow.push_back(random_tensor(shape, seed++, -1, 1, dtype));
        wide.push_back(converted(narrow.back(), DType::f64));
      }
      const Tensor projection = random_tensor(row.op(wide).shape(), 9, 0.5, 1.5, dtype);
      const Outcome want = run(row, wide, converted(projection, DType::f64), DType::f64);
      const Outcome got = run(row, narrow, projection, dtype);
      const std::string what = row.name + " " + name(dtype);
      EXPECT_LT(error_against(got.value, want.value), row.bound * unit) << what;
      for (size_t i = 0; i < want.gradients.size(); ++i)
        EXPECT_LT(error_against(got.gradients[i], want.gradients[i]), row.bound * unit) << what << ", gradient " << i;

      // Into float32: the same contributions, added without rounding the sum.
      const Outcome widened = run(row, narrow, projection, DType::f32);
      EXPECT_EQ(widened.value, got.value) << what;
      EXPECT_EQ(widened.gradients, got.gradients) << what << ": one contribution";
      const Outcome twice = run(row, narrow, projection, DType::f32, 2);
      for (size_t i = 0; i < want.gradients.size(); ++i) {
        Values doubled = got.gradients[i];
        for (double& v : doubled) v *= 2;
        EXPECT_EQ(twice.gradients[i], doubled) << what << ", gradient " << i << " of two passes";
      }
    }
  }
}

}  // namespace
}  // namespace rz::test
