// Optimizers as update rules over flat ranges: they know neither units nor ranks. The sharding layer owns weights, gradients
// and state, and calls update() on whatever part this rank keeps; rules are elementwise, so any cut gives the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::optim {

struct UpdateArguments {
  int64_t step = 1;            // counted from 1: Adam's bias correction
  double learning_rate = 0;
  double gradient_scale = 1;   // multiplies the gradient first (clipping, loss scale)
  bool decay = true;           // weight decay applies to this range
  Tensor rounded{};            // 16-bit training: the 16-bit weights, written in the same pass from the updated float32 ones
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual const char* name() const = 0;
  // Names of the state tensors, each float32 of the weights' shape, starting at zero.
  virtual std::vector<std::string> state_names() const = 0;
  // Updates weight and state in place, and arguments.rounded. All flat, of one length; weight and state float32, the gradient f32,
  // bf16 or f16; `state` in the order of state_names().
  virtual void update(const UpdateArguments& arguments, Tensor& weight, const Tensor& gradient, std::vector<Tensor>& state) const = 0;
};

// Kingma and Ba 2015 (arXiv 1412.6980); with decoupled decay AdamW, Loshchilov and Hutter 2019 (arXiv 1711.05101).
struct AdamConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  bool decoupled = true;  // AdamW; false: weight_decay * w is added to the gradient
};

// PyTorch's convention: m = momentum m + g; w -= lr m, or with Nesterov's momentum w -= lr (g + momentum m).
struct SgdConfig {
  double momentum = 0;
  bool nesterov = false;
  double weight_decay = 0;  // added to the gradient
};

std::unique_ptr<Optimizer> make_adam(const AdamConfig& config);
std::unique_ptr<Optimizer> make_sgd(const SgdConfig& config);

}  // namespace rz::optim
