// A small image classifier: its features measure generated images, its gradient guides them.
//   conv 3x3 - ReLU - pool - conv 3x3 - ReLU - pool - linear - ReLU (the features) - linear (the logits)
// With noise levels, a projection of their embedding is added before each of the first two ReLUs.
//
// Parameter names: conv1, conv2, hidden, out; noise.in, noise.out, noise1, noise2 (with noise levels). One unit.
#pragma once

#include <memory>

#include "models/diffusion/network.h"
#include "runtime/nn/image_layers.h"

namespace rz::models::diffusion {

class Classifier final : public nn::Module {
 public:
  explicit Classifier(const ClassifierConfig& config);

  struct Output {
    Tensor features;  // [B, features]
    Tensor logits;    // [B, classes]
  };

  const ClassifierConfig& config() const { return config_; }
  // x [B, H, W, C]; noise_B exactly where the configuration has noise levels. rz::Error otherwise.
  Output forward(const Tensor& x_BHWC, const Tensor& noise_B = {}) const;

 private:
  // ReLU of the convolution, with the noise level's projection where there is one.
  Tensor rectified(const nn::Conv2d& conv, const Tensor& x, const Tensor& c_BD, const std::unique_ptr<nn::Linear>& projection) const;

  ClassifierConfig config_;
  nn::Conv2d conv1_;
  nn::Conv2d conv2_;
  nn::Linear hidden_;
  nn::Linear out_;
  std::unique_ptr<ConditionEmbedding> noise_;
  std::unique_ptr<nn::Linear> noise1_;
  std::unique_ptr<nn::Linear> noise2_;
};

}  // namespace rz::models::diffusion
