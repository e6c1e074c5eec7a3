// Optimizers against an independent double-precision implementation over 1,000 steps, the invariance of cuts, schedules.
#include "optim/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/schedule.h"
#include "runtime/core/error.h"
#include "runtime/core/random.h"

namespace rz::optim {
namespace {

constexpr int64_t kElements = 37;  // not a multiple of any vector width
constexpr int64_t kSteps = 1000;

// A noisy quadratic bowl: gradients depend on the weights, so errors would feed back.
double gradient_of(double w, int64_t step, int64_t i) {
  const double target = std::sin(static_cast<double>(i));
  const double noise = 0.1 * Random(5, "noise", static_cast<uint64_t>(step)).normal(static_cast<uint64_t>(i));
  return w - target + noise;
}

struct Reference {
  std::vector<double> w = std::vector<double>(kElements);
  std::vector<double> a = std::vector<double>(kElements);
  std::vector<double> b = std::vector<double>(kElements);
};

Tensor initial_weights() {
  std::vector<float> w(kElements);
  for (int64_t i = 0; i < kElements; ++i) w[static_cast<size_t>(i)] = Random(1, "w").normal(static_cast<uint64_t>(i));
  return Tensor::of({kElements}, w);
}

// Runs `rule` and `reference(step, learning rate, gradient scale, state)` side by side; both see gradients at the rule's weights.
template <class ReferenceStep>
void expect_tracks(const Optimizer& rule, const ReferenceStep& reference_step) {
  Tensor w = initial_weights();
  std::vector<Tensor> state;
  for (const auto& name : rule.state_names()) state.push_back(Tensor::zeros({kElements}, DType::f32, name));
  Reference reference;
  for (int64_t i = 0; i < kElements; ++i) reference.w[static_cast<size_t>(i)] = w.data<float>()[i];
  for (int64_t step = 1; step <= kSteps; ++step) {
    const double rate = 0.01 * (1.0 - static_cast<double>(step - 1) / kSteps);
    const double scale = step % 3 == 0 ? 0.5 : 1.0;
    Tensor g = Tensor::zeros({kElements});
    std::vector<double> exact(kElements);
    for (int64_t i = 0; i < kElements; ++i) {
      exact[static_cast<size_t>(i)] = static_cast<float>(gradient_of(w.data<float>()[i], step, i));
      g.data<float>()[i] = static_cast<float>(exact[static_cast<size_t>(i)]);
    }
    rule.update({step, rate, scale, true}, w, g, state);
    reference_step(step, rate, scale, exact, reference);
    for (int64_t i = 0; i < kElements; ++i)
      ASSERT_NEAR(w.data<float>()[i], reference.w[static_cast<size_t>(i)], 2e-5) << rule.name() << " step " << step << " element " << i;
  }
}

void adam_reference(const AdamConfig& c, int64_t t, double rate, double scale, const std::vector<double>& grad, Reference& r) {
  for (size_t i = 0; i < grad.size(); ++i) {
    double g = grad[i] * scale;
    if (!c.decoupled) g += c.weight_decay * r.w[i];
    r.a[i] = c.beta1 * r.a[i] + (1 - c.beta1) * g;
    r.b[i] = c.beta2 * r.b[i] + (1 - c.beta2) * g * g;
    const double m = r.a[i] / (1 - std::pow(c.beta1, static_cast<double>(t)));
    const double v = r.b[i] / (1 - std::pow(c.beta2, static_cast<double>(t)));
    const double decay = c.decoupled ? rate * c.weight_decay * r.w[i] : 0.0;
    r.w[i] = r.w[i] - decay - rate * m / (std::sqrt(v) + c.epsilon);
  }
}

TEST(Optimizer, AdamWTracksDoublePrecision) {
  const AdamConfig c{0.9, 0.95, 1e-8, 0.1, true};
  expect_tracks(*make_adam(c), [&](auto&&... args) { adam_reference(c, args...); });
}

TEST(Optimizer, AdamWithL2TracksDoublePrecision) {
  const AdamConfig c{0.9, 0.999, 1e-8, 0.01, false};
  expect_tracks(*make_adam(c), [&](auto&&... args) { adam_reference(c, args...); });
}

void sgd_reference(const SgdConfig& c, double rate, double scale, const std::vector<double>& grad, Reference& r) {
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * scale + c.weight_decay * r.w[i];
    r.a[i] = c.momentum * r.a[i] + g;
    r.w[i] -= rate * (c.nesterov ? g + c.momentum * r.a[i] : r.a[i]);
  }
}

TEST(Optimizer, SgdTracksDoublePrecision) {
  for (const SgdConfig& c : {SgdConfig{0, false, 0.01}, SgdConfig{0.9, false, 0}, SgdConfig{0.9, true, 0.01}}) {
    expect_tracks(*make_sgd(c), [&](int64_t, double rate, double scale, const std::vector<double>& grad, Reference& r) {
      sgd_reference(c, rate, scale, grad, r);
    });
  }
}

TEST(Optimizer, AWrongBiasCorrectionIsCaught) {
  // The negative control of the comparison above: forgetting the bias correction must not pass for Adam.
  const AdamConfig c{0.9, 0.999, 1e-8, 0, true};
  Tensor w = initial_weights();
  std::vector<Tensor> state = {Tensor::zeros({kElements}), Tensor::zeros({kElements})};
  Tensor g = Tensor::full({kElements}, 1.0);
  const auto before = w.to_vector<float>();
  make_adam(c)->update({1, 0.01, 1, true}, w, g, state);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i] - w.data<float>()[i], 0.01, 1e-6);  // sign(g) * rate
}

TEST(Optimizer, AnyCutGivesTheSameBits) {
  for (const auto& make : {+[] { return make_adam({0.9, 0.95, 1e-8, 0.1, true}); }, +[] { return make_sgd({0.9, true, 0.01}); }}) {
    const auto rule = make();
    constexpr int64_t kLong = 1003;
    std::vector<float> w(kLong), g(kLong);
    for (size_t i = 0; i < w.size(); ++i) w[i] = Random(1, "w").normal(i), g[i] = Random(2, "g").normal(i);
    Tensor whole = Tensor::of({kLong}, w), cut = Tensor::of({kLong}, w);
    const Tensor grad = Tensor::of({kLong}, g);
    std::vector<Tensor> whole_state, cut_state;
    for (const auto& name : rule->state_names()) {
      whole_state.push_back(Tensor::zeros({kLong}, DType::f32, name));
      cut_state.push_back(Tensor::zeros({kLong}, DType::f32, name));
    }
    for (int64_t step = 1; step <= 5; ++step) {
      rule->update({step, 0.01, 0.7, true}, whole, grad, whole_state);
      int64_t begin = 0;
      for (const int64_t length : {1, 2, 7, 16, 33, 100, 844}) {
        Tensor part = cut.view_slice(0, begin, begin + length);
        std::vector<Tensor> part_state;
        for (const Tensor& s : cut_state) part_state.push_back(s.view_slice(0, begin, begin + length));
        rule->update({step, 0.01, 0.7, true}, part, grad.view_slice(0, begin, begin + length), part_state);
        begin += length;
      }
      ASSERT_EQ(begin, kLong);
    }
    EXPECT_EQ(whole.to_vector<float>(), cut.to_vector<float>()) << rule->name();
  }
}

TEST(Optimizer, RefusesImpossibleSettings) {
  EXPECT_THROW(make_adam({1.0, 0.9, 1e-8, 0, true}), ConfigError);
  EXPECT_THROW(make_adam({0.9, -0.1, 1e-8, 0, true}), ConfigError);
  EXPECT_THROW(make_adam({0.9, 0.9, 0, 0, true}), ConfigError);
  EXPECT_THROW(make_sgd({0, true, 0}), ConfigError);
  EXPECT_THROW(make_sgd({0.9, false, -1}), ConfigError);
}

TEST(Schedules, HaveTheirShapes) {
  Schedule s{Schedule::Kind::cosine, 1.0, 0.1, 10, 110};
  EXPECT_DOUBLE_EQ(s.at(0), 0.1);
  EXPECT_DOUBLE_EQ(s.at(9), 1.0);
  EXPECT_DOUBLE_EQ(s.at(10), 1.0);
  EXPECT_NEAR(s.at(60), 0.55, 1e-12);
  EXPECT_NEAR(s.at(110), 0.1, 1e-12);
  EXPECT_NEAR(s.at(1000), 0.1, 1e-12);
  s.kind = Schedule::Kind::linear;
  EXPECT_NEAR(s.at(35), 0.775, 1e-12);
  s.kind = Schedule::Kind::constant;
  EXPECT_DOUBLE_EQ(s.at(100), 1.0);
}

}  // namespace
}  // namespace rz::optim
