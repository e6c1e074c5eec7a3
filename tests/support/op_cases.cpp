#include "tests/support/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/autograd/engine.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "tests/support/gradcheck.h"

namespace rz::test {

namespace {

double epsilon(DType t) {
  switch (t) {
    case DType::f64:
      return 2.3e-16;
    case DType::f32:
      return 1.2e-7;
    case DType::f16:
      return 9.8e-4;
    default:
      return 7.9e-3;
  }
}

std::vector<Tensor> make_inputs(const OpCase& row, DType dtype) {
  std::vector<Tensor> inputs;
  uint64_t seed = 11;
  for (const OpInput& input : row.inputs)
    inputs.push_back(input.fixed.defined() ? input.fixed : random_tensor(input.shape, seed++, input.low, input.high, dtype));
  return inputs;
}

Tensor converted(const Tensor& t, DType dtype) {
  if (!is_floating(t.dtype())) return t;
  Tensor out = Tensor::empty(t.shape(), dtype);
  backend({}).elementwise->copy(t, out);
  return out;
}

// The same values as a view whose dimensions lie in reverse order in memory, with a gap.
Tensor strided(const Tensor& t) {
  if (t.rank() == 0) return t;
  std::vector<int64_t> extents;
  std::vector<int> order;
  for (int d = t.rank() - 1; d >= 0; --d) {
    extents.push_back(t.size(d));
    order.push_back(d);
  }
  extents.back() += 1;
  const Tensor large = Tensor::full(Shape(extents), 0, t.dtype());
  Tensor view = large.view_permute(order).view_slice(0, 1, extents.back());
  backend({}).elementwise->copy(t, view);
  return view;
}

struct Outcome {
  std::vector<double> value;
  std::vector<std::vector<double>> gradients;
};

Outcome run(const OpCase& row, const std::vector<Tensor>& inputs, const Tensor& projection) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : inputs) {
    leaves.push_back(t.view_alias());
    if (row.has_gradient && is_floating(t.dtype())) autograd::set_requires_grad(leaves.back(), true);
  }
  const Tensor out = row.op(leaves);
  Outcome outcome{values_of(out), {}};
  if (!row.has_gradient) return outcome;
  autograd::backward(out, {.grad = converted(projection, out.dtype())});
  for (const Tensor& leaf : leaves)
    if (is_floating(leaf.dtype())) outcome.gradients.push_back(values_of(autograd::grad_of(leaf)));
  return outcome;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, double bound, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 1;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::abs(got[i] - want[i]) <= bound * largest) continue;
    ADD_FAILURE() << what << " element " << i << ": got " << got[i] << ", want " << want[i] << " (bound " << bound * largest << ")";
    return;
  }
}

}  // namespace

void check_op_case(const OpCase& row) {
  const auto exact = make_inputs(row, DType::f64);
  const Tensor out = row.op(exact);
  const Tensor projection = random_tensor(out.shape(), 5, 0.5, 1.5);
  expect_near(values_of(out), row.reference(exact), 1e-13 * row.precision, row.name + " f64");
  if (row.has_gradient) expect_gradients_match(row.op, exact, {.name = row.name, .step = row.step});
  const Outcome outcome = run(row, exact, projection);

  std::vector<DType> types{DType::f32};
  if (row.any_dtype) types.insert(types.end(), {DType::bf16, DType::f16});
  for (const DType type : types) {
    // The reference sees the rounded inputs, in double.
    std::vector<Tensor> narrow, widened;
    for (const Tensor& t : exact) narrow.push_back(converted(t, type)), widened.push_back(converted(narrow.back(), DType::f64));
    const Outcome want = run(row, widened, converted(converted(projection, type), DType::f64));
    const Outcome got = run(row, narrow, converted(projection, type));
    const std::string what = row.name + " " + name(type);
    const double bound = row.precision * epsilon(type);
    expect_near(got.value, row.reference(widened), bound, what);
    for (size_t i = 0; i < want.gradients.size(); ++i)
      expect_near(got.gradients[i], want.gradients[i], bound, fmt::format("{} gradient {}", what, i));
  }

  std::vector<Tensor> views;
  for (const Tensor& t : exact) views.push_back(strided(t));
  EXPECT_EQ(run(row, views, projection).value, outcome.value) << row.name << ": strided inputs give other bits";
  if (row.has_gradient) {
    const auto gradients = run(row, views, projection).gradients;
    for (size_t i = 0; i < gradients.size(); ++i)
      expect_near(gradients[i], outcome.gradients[i], 1e-13, fmt::format("{} gradient {} with strided inputs", row.name, i));
  }

  const auto context = RankContext::make(0, 3);
  const RankContextScope scope(context);
  const Outcome threaded = run(row, exact, projection);
  EXPECT_EQ(threaded.value, outcome.value) << row.name << ": other bits with 3 threads";
  EXPECT_EQ(threaded.gradients, outcome.gradients) << row.name << ": other gradient bits with 3 threads";
}

}  // namespace rz::test
