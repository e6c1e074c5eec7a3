// The tape and its walk: order, counting of uses, hooks, errors, lifetime.
#include "runtime/autograd/engine.h"

#include <gtest/gtest.h>

#include <map>

#include "runtime/autograd/grad_mode.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/shape.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using autograd::AutogradMeta;
using autograd::backward;
using autograd::GradientTarget;
using test::values_of;

Tensor leaf(Shape shape, double value, DType dtype = DType::f32) {
  Tensor t = Tensor::full(shape, value, dtype, "leaf");
  autograd::set_requires_grad(t, true);
  return t;
}

double only(const Tensor& t) {
  const auto v = values_of(t);
  for (const double x : v) EXPECT_EQ(x, v[0]);
  return v.at(0);
}

// Notes calls, keeps one gradient per leaf.
class RecordingSink final : public autograd::GradientSink {
 public:
  GradientTarget target(AutogradMeta& leaf) override {
    ++contributions[&leaf];
    Tensor& slot = gradients[&leaf];
    const bool first = !slot.defined();
    if (first) slot = Tensor::empty(leaf.shape, leaf.dtype, Category::gradient, "sink");
    return {slot, !first};
  }
  void ready(AutogradMeta& leaf) override { order.emplace_back(&leaf, contributions[&leaf]); }

  std::map<const AutogradMeta*, int> contributions;
  std::map<const AutogradMeta*, Tensor> gradients;
  std::vector<std::pair<const AutogradMeta*, int>> order;  // (leaf, contributions so far)
};

TEST(Engine, GradientsOfASmallGraph) {
  Tensor a = leaf({3}, 2), b = leaf({3}, 5);
  backward(ops::sum(ops::mul(ops::add(a, b), a)));  // (a + b) a
  EXPECT_EQ(only(autograd::grad_of(a)), 2 * 2 + 5);
  EXPECT_EQ(only(autograd::grad_of(b)), 2);
}

TEST(Engine, BackwardAccumulatesIntoLeavesUntilCleared) {
  Tensor a = leaf({2}, 3);
  for (int i = 1; i <= 3; ++i) {
    backward(ops::sum(ops::square(a)));
    EXPECT_EQ(only(autograd::grad_of(a)), 6.0 * i);
  }
  autograd::clear_grad(a);
  EXPECT_FALSE(autograd::grad_of(a).defined());
}

TEST(Engine, NodesRunFromTheNewestToTheOldest) {
  std::vector<std::string> order;
  const auto probe = [&](const char* name, const Tensor& x) {
    return autograd::record(name, x.view_alias(), {x}, [&order, name](const Tensor& grad, autograd::InputGradients& in) {
      order.emplace_back(name);
      in.add(0, grad);
    });
  };
  Tensor a = leaf({1}, 1);
  const Tensor first = probe("first", a), second = probe("second", a), third = probe("third", first);
  backward(ops::add(third, second));  // `second` is older than `third` whatever its place in the expression
  EXPECT_EQ(order, (std::vector<std::string>{"third", "second", "first"}));
}

TEST(Engine, ATiedLeafIsReadyOnceAfterItsLastContribution) {
  Tensor tied = leaf({4, 4}, 0.5), other = leaf({4, 4}, 1), x = Tensor::full({2, 4}, 1);
  const Tensor h = ops::linear(x, tied);
  const Tensor y = ops::linear(ops::linear(h, other), tied);
  RecordingSink sink;
  backward(ops::sum(y), {.sink = &sink});
  ASSERT_EQ(sink.order.size(), 2u);
  EXPECT_EQ(sink.order[0], std::pair(static_cast<const AutogradMeta*>(autograd::find_meta(other)), 1));
  EXPECT_EQ(sink.order[1], std::pair(static_cast<const AutogradMeta*>(autograd::find_meta(tied)), 2));
}

TEST(Engine, OneOpMayUseALeafTwice) {
  Tensor a = leaf({2}, 3);
  RecordingSink sink;
  backward(ops::sum(ops::mul(a, a)), {.sink = &sink});
  ASSERT_EQ(sink.order.size(), 1u);
  EXPECT_EQ(only(sink.gradients.begin()->second), 6);
}

TEST(Engine, AnUnusedLeafIsNeverReached) {
  Tensor used = leaf({2}, 1), unused = leaf({2}, 1);
  const Tensor dropped = ops::exp(unused);
  RecordingSink sink;
  backward(ops::sum(ops::exp(used)), {.sink = &sink});
  EXPECT_EQ(sink.order.size(), 1u);
  EXPECT_EQ(sink.contributions.count(autograd::find_meta(unused)), 0u);
}

TEST(Engine, HooksSeeCompleteGradientsAndMayReplaceThoseOfNodes) {
  Tensor a = leaf({2}, 1);
  Tensor middle = ops::scale(a, 3);
  std::vector<double> seen;
  autograd::register_hook(middle, [&](const Tensor& grad) {
    seen.push_back(only(grad));
    return ops::scale(grad, 10);
  });
  autograd::register_hook(a, [&](const Tensor& grad) {
    seen.push_back(only(grad));
    return grad;
  });
  backward(ops::sum(ops::add(middle, middle)));
  EXPECT_EQ(seen, (std::vector<double>{2, 60}));
  EXPECT_EQ(only(autograd::grad_of(a)), 60);
}

TEST(Engine, DetachAndNoGradCutTheGraph) {
  Tensor a = leaf({2}, 2);
  backward(ops::sum(ops::mul(a, ops::detach(ops::square(a)))));
  EXPECT_EQ(only(autograd::grad_of(a)), 4);  // a^2 counts as a constant
  {
    const autograd::NoGrad no_grad;
    EXPECT_FALSE(autograd::requires_grad(ops::square(a)));
    const autograd::GradMode again(true);
    EXPECT_TRUE(autograd::requires_grad(ops::square(a)));
  }
  EXPECT_TRUE(autograd::requires_grad(ops::square(a)));
}

TEST(Engine, AnInPlaceChangeOfASavedTensorIsAnError) {
  Tensor a = leaf({2}, 2);
  const Tensor y = ops::square(a);
  backend({}).elementwise->fill(a, 7);
  try {
    backward(ops::sum(y));
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("changed in place"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("'leaf'"), std::string::npos) << e.what();
  }
  // An op that keeps nothing does not mind.
  const Tensor z = ops::add(a, a);
  backend({}).elementwise->fill(a, 8);
  backward(ops::sum(z));
}

TEST(Engine, AWalkThatFailsLeavesNothingBehind) {
  Tensor x = leaf({2}, 1), z = leaf({2}, 1);
  const Tensor a = ops::scale(x, 2), b = ops::scale(z, 3);
  backward(ops::sum(a));
  // The walk finds that a's saved tensors are gone while b waits to be visited.
  EXPECT_THROW(backward(ops::sum(ops::add(b, a))), Error);
  EXPECT_FALSE(autograd::grad_of(z).defined());
  backward(ops::sum(b));
  EXPECT_EQ(only(autograd::grad_of(z)), 3);
  // A gradient that was allocated and never computed is none.
  Tensor v = leaf({1, 2}, 1), w = leaf({2, 2}, 5);
  const Tensor y = ops::sum(ops::matmul(v, w));
  backend({}).elementwise->fill(w, 7);
  EXPECT_THROW(backward(y), Error);
  EXPECT_FALSE(autograd::grad_of(v).defined());
  backward(ops::sum(ops::matmul(v, w)));
  EXPECT_EQ(only(autograd::grad_of(v)), 14);
}

TEST(Engine, ASecondBackwardNeedsRetainGraph) {
  Tensor a = leaf({2}, 2);
  const Tensor y = ops::sum(ops::square(a));
  backward(y, {.retain_graph = true});
  backward(y);
  EXPECT_EQ(only(autograd::grad_of(a)), 8);
  EXPECT_THROW(backward(y), Error);
}

TEST(Engine, ErrorsOfUse) {
  Tensor a = leaf({2}, 2);
  EXPECT_THROW(backward(Tensor::scalar(1)), Error);                               // not part of a graph
  EXPECT_THROW(backward(ops::square(a)), Error);                                  // needs a gradient: not a scalar
  EXPECT_THROW(backward(ops::square(a), {.grad = Tensor::full({3}, 1)}), Error);  // of the wrong shape
  Tensor y = ops::square(a);
  EXPECT_THROW(autograd::set_requires_grad(y, true), Error);  // not a leaf
  Tensor i = Tensor::full({2}, 1, DType::i64);
  EXPECT_THROW(autograd::set_requires_grad(i, true), Error);  // integers have no gradient
}

TEST(Engine, GradWithRespectToLeavesAndInnerTensorsTouchesNoLeaf) {
  Tensor a = leaf({2}, 3), unrelated = leaf({2}, 1);
  const Tensor inner = ops::square(a);
  const Tensor y = ops::sum(ops::mul(inner, inner));  // a^4
  const auto grads = autograd::grad({y}, {inner, a, unrelated});
  EXPECT_EQ(only(grads[0]), 2 * 9);
  EXPECT_EQ(only(grads[1]), 4 * 27);
  EXPECT_EQ(only(grads[2]), 0);
  EXPECT_FALSE(autograd::grad_of(a).defined());
}

TEST(Engine, GradOfSeveralOutputs) {
  Tensor a = leaf({2}, 3);
  const Tensor b = ops::scale(a, 2);
  const auto grads = autograd::grad({ops::sum(b), ops::square(b)}, {a}, {Tensor(), Tensor::full({2}, 0.5)});
  EXPECT_EQ(only(grads[0]), 2 + 0.5 * 2 * 6 * 2);
}

// A node above the cut must not run, nor keep its contributions.
TEST(Engine, GradWithRespectToAnInnerTensorSkipsWhatLiesBelow) {
  Tensor a = leaf({2}, 3);
  bool ran = false;
  const Tensor below = autograd::record("below", a.view_alias(), {a}, [&](const Tensor& grad, autograd::InputGradients& in) {
    ran = true;
    in.add(0, grad);
  });
  EXPECT_EQ(only(autograd::grad({ops::sum(ops::square(below))}, {below})[0]), 6);
  EXPECT_FALSE(ran);
}

TEST(Engine, AnExceptionInBackwardLeavesNothingBehind) {
  auto& memory = RankContext::current()->memory();
  Tensor a = leaf({64}, 2), b = leaf({64}, 1);
  bool fail = true;
  const auto build = [&] {
    const Tensor middle =
        autograd::record("fails", ops::mul(a, b).view_alias(), {a, b}, [&fail](const Tensor& grad, autograd::InputGradients& in) {
          in.add(0, grad);
          if (fail) throw Error("on purpose");
          in.add(1, grad);
        });
    return ops::sum(ops::add(ops::square(a), middle));
  };
  {
    const Tensor y = build();
    EXPECT_THROW(backward(y), Error);
  }
  autograd::clear_grad(a);
  autograd::clear_grad(b);
  EXPECT_EQ(memory.current_bytes(Category::activation_gradient), 0);
  fail = false;
  RecordingSink sink;
  backward(build(), {.sink = &sink});
  EXPECT_EQ(sink.order.size(), 2u);
  EXPECT_EQ(only(sink.gradients[autograd::find_meta(a)]), 5);
  EXPECT_EQ(only(sink.gradients[autograd::find_meta(b)]), 1);
}

TEST(Engine, ALongChainOverflowsNoStack) {
  constexpr int kNodes = 200000;
  Tensor a = leaf({1}, 1);
  {
    Tensor y = a;
    for (int i = 0; i < kNodes; ++i) y = ops::shift(y, 1);
    backward(y, {.grad = Tensor::full({1}, 1)});
    EXPECT_EQ(only(autograd::grad_of(a)), 1);
  }
  {
    Tensor y = a;
    for (int i = 0; i < kNodes; ++i) y = ops::shift(y, 1);
    // Destroyed without ever being walked.
  }
}

TEST(Engine, SavedTensorsAreFreedAsTheWalkPasses) {
  auto& memory = RankContext::current()->memory();
  const int64_t before = memory.current_bytes(Category::activation);
  Tensor a = leaf({1024}, 1);
  const int64_t with_leaf = memory.current_bytes(Category::activation);
  Tensor y = ops::sum(ops::exp(ops::exp(a)));
  EXPECT_GT(memory.current_bytes(Category::activation), with_leaf);
  backward(y);
  EXPECT_EQ(memory.current_bytes(Category::activation), with_leaf + 4);
  y = Tensor();
  a = Tensor();
  EXPECT_EQ(memory.current_bytes(Category::activation), before);
}

// What an op keeps is what its functor declares: exp keeps its output, so its input can go.
TEST(Engine, OpsKeepOnlyWhatTheirFunctorDeclares) {
  auto& memory = RankContext::current()->memory();
  const auto kept_bytes = [&](auto&& op) {
    Tensor a = leaf({1000}, 0.5);
    const int64_t before = memory.current_bytes(Category::activation);
    Tensor y = op(ops::shift(a, 1));  // the shifted tensor lives on only if it is kept
    return memory.current_bytes(Category::activation) - before;
  };
  EXPECT_EQ(kept_bytes([](const Tensor& x) { return ops::exp(x); }), 4000);
  EXPECT_EQ(kept_bytes([](const Tensor& x) { return ops::scale(x, 2); }), 4000);
  EXPECT_EQ(kept_bytes([](const Tensor& x) { return ops::log(x); }), 8000);
  EXPECT_EQ(kept_bytes([](const Tensor& x) { return ops::add(x, x); }), 4000);
  EXPECT_EQ(kept_bytes([](const Tensor& x) { return ops::mul(x, Tensor::full({}, 2)); }), 4004);
}

TEST(Engine, TheWeightGradientIsAddedInPlace) {
  // A sink that hands out a view of a flat buffer, as sharding does.
  class FlatSink final : public autograd::GradientSink {
   public:
    explicit FlatSink(Tensor flat) : flat_(std::move(flat)) {}
    GradientTarget target(AutogradMeta& leaf) override { return {Tensor::over(flat_.storage(), leaf.shape, leaf.dtype, 8), true}; }
    void ready(AutogradMeta&) override {}
    Tensor flat_;
  };
  Tensor weight = leaf({3, 2}, 1);
  FlatSink sink(Tensor::full({32}, 100));
  auto& memory = RankContext::current()->memory();
  const Tensor y = ops::linear(Tensor::full({5, 2}, 1), weight);
  const Tensor grad = Tensor::full({5, 3}, 1);
  memory.reset_peaks();
  const int64_t before = memory.current_bytes(Category::activation_gradient);
  backward(y, {.grad = grad, .sink = &sink});
  EXPECT_EQ(memory.peak().by_category[static_cast<size_t>(Category::activation_gradient)], before);
  const auto values = values_of(sink.flat_);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], i >= 8 && i < 14 ? 105 : 100) << i;
}

}  // namespace
}  // namespace rz
