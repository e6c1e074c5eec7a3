#include "models/diffusion/classifier.h"

#include <cmath>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/image.h"
#include "runtime/ops/shape.h"

namespace rz::models::diffusion {

namespace {

const double kReluGain = std::sqrt(2.0);  // He et al. 2015

const ClassifierConfig& checked(const ClassifierConfig& c) {
  c.check();
  return c;
}

int64_t flat_width(const ClassifierConfig& c) { return c.image.height / 2 / 2 * (c.image.width / 2 / 2) * c.width2; }

}  // namespace

Classifier::Classifier(const ClassifierConfig& config)
    : config_(checked(config)),
      conv1_(config.image.channels, config.width1, 3, {1, 1}, true, nn::fan_in_init(9 * config.image.channels, kReluGain)),
      conv2_(config.width1, config.width2, 3, {1, 1}, true, nn::fan_in_init(9 * config.width1, kReluGain)),
      hidden_(flat_width(config), config.features, true, nn::fan_in_init(flat_width(config), kReluGain)),
      out_(config.features, config.classes, true, nn::fan_in_init(config.features)) {
  register_module("conv1", conv1_);
  register_module("conv2", conv2_);
  register_module("hidden", hidden_);
  register_module("out", out_);
  if (!config.noise_levels) return;
  const int64_t width = 4 * config.width1;
  noise_ = std::make_unique<ConditionEmbedding>(2 * config.width1, width, 0, nn::fan_in_init(2 * config.width1), nn::fan_in_init(width),
                                                nn::Init::zeros());
  noise1_ = std::make_unique<nn::Linear>(width, config.width1, true, nn::fan_in_init(width));
  noise2_ = std::make_unique<nn::Linear>(width, config.width2, true, nn::fan_in_init(width));
  register_module("noise", *noise_);
  register_module("noise1", *noise1_);
  register_module("noise2", *noise2_);
}

Tensor Classifier::rectified(const nn::Conv2d& conv, const Tensor& x, const Tensor& c_BD,
                             const std::unique_ptr<nn::Linear>& projection) const {
  if (!projection) return conv.forward(x, ConvActivation::relu);
  const Tensor h = conv.forward(x);
  return ops::relu(ops::add(h, ops::reshape(projection->forward(c_BD), {h.size(0), 1, 1, h.size(3)})));
}

Classifier::Output Classifier::forward(const Tensor& x_BHWC, const Tensor& noise_B) const {
  RZ_CHECK(noise_B.defined() == config_.noise_levels, "the classifier {} noise levels", config_.noise_levels ? "needs" : "takes no");
  check_images("classifier", config_.image, x_BHWC, noise_B);
  const Tensor c_BD = noise_ ? noise_->forward(noise_B, {}) : Tensor();
  Tensor h = ops::max_pool(rectified(conv1_, x_BHWC, c_BD, noise1_));
  h = ops::max_pool(rectified(conv2_, h, c_BD, noise2_));
  const Tensor features = ops::relu(hidden_.forward(ops::reshape(h, {h.size(0), flat_width(config_)})));
  return {features, out_.forward(features)};
}

}  // namespace rz::models::diffusion
