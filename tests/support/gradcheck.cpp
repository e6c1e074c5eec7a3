#include "tests/support/gradcheck.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"

namespace rz::test {

namespace {

constexpr size_t kReported = 5;

double project(const Tensor& out, const std::vector<double>& weights) {
  const auto values = values_of(out);
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

bool differs(double a, double b, double tolerance) { return !(std::abs(a - b) <= tolerance * std::max({1.0, std::abs(a), std::abs(b)})); }

}  // namespace

Tensor random_tensor(Shape shape, uint64_t seed, double low, double high, DType dtype) {
  const Random random(seed, "test");
  Tensor t = Tensor::empty(shape, dtype, "random test tensor");
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = t.data<T>();
    for (int64_t i = 0; i < t.numel(); ++i)
      to[i] = static_cast<T>(static_cast<compute_t<T>>(low + (high - low) * random.uniform64(2 * static_cast<uint64_t>(i))));
  });
  return t;
}

std::vector<double> values_of(const Tensor& t) {
  std::vector<double> out(static_cast<size_t>(t.numel()));
  dispatch(t.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = t.data<T>();
    std::vector<int64_t> index(static_cast<size_t>(t.rank()), 0);
    for (double& value : out) {
      int64_t at = 0;
      for (int d = 0; d < t.rank(); ++d) at += index[static_cast<size_t>(d)] * t.stride(d);
      value = static_cast<double>(static_cast<compute_t<T>>(from[at]));
      for (int d = t.rank() - 1; d >= 0; --d) {
        if (++index[static_cast<size_t>(d)] < t.size(d)) break;
        index[static_cast<size_t>(d)] = 0;
      }
    }
  });
  return out;
}

Tensor contiguous_copy(const Tensor& t) {
  const auto values = values_of(t);
  Tensor copy = Tensor::empty(t.shape(), t.dtype(), "contiguous copy");
  dispatch(t.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = copy.data<T>();
    for (size_t i = 0; i < values.size(); ++i) to[i] = static_cast<T>(static_cast<compute_t<T>>(values[i]));
  });
  return copy;
}

std::vector<std::string> gradient_mismatches(const TensorFunction& f, const std::vector<Tensor>& inputs, const GradcheckOptions& options) {
  std::vector<std::string> mismatches;
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs) {
    if (!is_floating(input.dtype())) {
      leaves.push_back(input);
      continue;
    }
    RZ_CHECK(input.dtype() == DType::f64, "{}: gradcheck needs f64 inputs, got {}", options.name, input.str());
    leaves.push_back(contiguous_copy(input));
    autograd::set_requires_grad(leaves.back(), true);
  }

  Tensor weights;
  for (int pass = 0; pass < 2; ++pass) {
    const Tensor out = f(leaves);
    RZ_CHECK(out.dtype() == DType::f64, "{}: gradcheck needs an f64 output, got {}", options.name, out.str());
    // Away from zero, so that no output element goes unseen.
    if (pass == 0) weights = random_tensor(out.shape(), options.seed, 0.5, 1.5);
    autograd::backward(out, {.grad = weights});
  }
  const auto projection = values_of(weights);

  const autograd::NoGrad no_grad;
  for (size_t i = 0; i < leaves.size() && mismatches.size() < kReported; ++i) {
    if (!is_floating(leaves[i].dtype())) continue;
    const Tensor grad = autograd::grad_of(leaves[i]);
    const auto twice = grad.defined() ? values_of(grad) : std::vector<double>(static_cast<size_t>(leaves[i].numel()), 0.0);
    auto* x = leaves[i].data<double>();
    for (int64_t k = 0; k < leaves[i].numel() && mismatches.size() < kReported; ++k) {
      const double kept = x[k];
      const double step = options.step * std::max(1.0, std::abs(kept));
      x[k] = kept + step;
      const double above = project(f(leaves), projection);
      x[k] = kept - step;
      const double below = project(f(leaves), projection);
      x[k] = kept;
      const double numeric = (above - below) / (2 * step);
      const double analytic = twice[static_cast<size_t>(k)] / 2;
      if (differs(analytic, numeric, options.tolerance))
        mismatches.push_back(fmt::format("{}: input {} {} element {} (x = {:.6g}): analytic {:.10g}, numeric {:.10g}", options.name, i,
                                         leaves[i].shape().str(), k, kept, analytic, numeric));
    }
  }
  return mismatches;
}

void expect_gradients_match(const TensorFunction& f, std::vector<Tensor> inputs, GradcheckOptions options) {
  for (const auto& line : gradient_mismatches(f, inputs, options)) ADD_FAILURE() << line;
}

}  // namespace rz::test
