// A model with everything that a sharding layer may trip over, and its loss.
#pragma once

#include <vector>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "tests/optim/sharded_fixture.h"

namespace rz::optim {

// A model with everything awkward: tied, frozen, unused and tiny parameters, a unit of one element.
class Awkward final : public nn::Module {
 public:
  class Part final : public nn::Module {
   public:
    explicit Part(int64_t width)
        : w(register_parameter("w", {width, width}, nn::Init::normal(0.3), true)),
          scale(register_parameter("scale", {1}, nn::Init::ones(), false)) {}
    nn::Parameter& w;
    nn::Parameter& scale;
  };

  Awkward()
      : tied(register_parameter("tied", {5, 5}, nn::Init::normal(0.3), true)),
        unused(register_parameter("unused", {7}, nn::Init::normal(1), true)) {
    register_module("first", first);
    register_module("second", second);
    second.w.trainable = false;
  }

  std::vector<nn::Unit> units() override { return {{"first", &first}, {"second", &second}}; }

  Tensor loss(const Tensor& x, double factor) {
    Tensor y = ops::matmul(x, tied.value);
    for (Part* part : {&first, &second})
      y = nn::run_unit(*part, {y}, [&](const std::vector<Tensor>& in) {
        return ops::mul(ops::tanh(ops::matmul(in[0], part->w.value)), part->scale.value);
      });
    y = ops::matmul(y, tied.value, {.b = true});
    return ops::scale(ops::sum(ops::square(y)), factor);
  }

  nn::Parameter& tied;
  nn::Parameter& unused;
  Part first{5};
  Part second{5};
};

inline MicroLoss awkward_loss(Awkward& model, const RunSettings& s, int64_t step, int64_t first, int64_t count) {
  std::vector<float> values;
  for (int64_t b = first; b < first + count; ++b)
    for (uint64_t i = 0; i < 5; ++i) values.push_back(Random(4, "x", static_cast<uint64_t>(step), static_cast<uint64_t>(b)).normal(i));
  Tensor loss = model.loss(Tensor::of({count, 5}, values), 1.0 / static_cast<double>(s.batch));
  const double sum = loss.item() * static_cast<double>(s.batch);
  return {std::move(loss), sum, count};
}

}  // namespace rz::optim
