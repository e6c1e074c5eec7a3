// Fused optimizer updates over flat ranges: one pass reads gradient, state and weight and writes state and weight.
// Elementwise: any cut of a range gives the same bits, which is what makes sharded and unsharded updates equal.
// Weights and state are float32. With 16-bit training the weight here is the master copy, the gradient is read in its own type,
// and the 16-bit weights (`rounded`) are written in the same pass; in float32 training `rounded` is undefined.
#pragma once

#include "runtime/core/tensor.h"

namespace rz {

// m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  w -= lr (m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps) + decay w)
// Adam: Kingma and Ba 2015 (arXiv 1412.6980), AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101).
struct AdamStep {
  float learning_rate = 0;
  float beta1 = 0;
  float beta2 = 0;
  float epsilon = 0;
  float weight_decay = 0;
  bool decoupled = true;         // AdamW; false: decay is added to the gradient (Adam with L2)
  float bias_correction1 = 1;    // 1 - beta1^t
  float bias_correction2 = 1;    // 1 - beta2^t
  float gradient_scale = 1;      // multiplies the gradient first: clipping, loss scale
};

// g += decay w;  m = momentum m + g (m starts at 0);  w -= lr (nesterov ? g + momentum m : m). PyTorch's convention.
struct SgdStep {
  float learning_rate = 0;
  float momentum = 0;
  float weight_decay = 0;
  bool nesterov = false;
  float gradient_scale = 1;
};

class OptimizerKernels {
 public:
  virtual ~OptimizerKernels() = default;
  // All contiguous, of the same number of elements; `grad` and `rounded` are f32, bf16 or f16, the others f32. `momentum` may be
  // undefined when step.momentum is 0. rounded = weight, to nearest even, where it is defined.
  virtual void adam(const AdamStep& step, Tensor& weight, const Tensor& grad, Tensor& first_moment, Tensor& second_moment,
                    const Tensor& rounded) = 0;
  virtual void sgd(const SgdStep& step, Tensor& weight, const Tensor& grad, Tensor& momentum, const Tensor& rounded) = 0;
  // average = decay average + (1 - decay) weight
  virtual void ema(float decay, Tensor& average, const Tensor& weight) = 0;
  // Sum of squares in double of f32, bf16 or f16, summed in blocks of a fixed size: independent of the thread count. Not finite
  // exactly when an element is not.
  virtual double sum_of_squares(const Tensor& x) = 0;
};

}  // namespace rz
