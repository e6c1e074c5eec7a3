#include "runtime/nn/image_layers.h"

#include <algorithm>
#include <cmath>

namespace rz::nn {

Init fan_in_init(int64_t inputs, double gain) { return Init::normal(gain / std::sqrt(static_cast<double>(inputs))); }

Conv2d::Conv2d(int64_t in, int64_t out, int64_t kernel, ConvWindow window, bool bias, Init weight_init)
    : window_(window), weight_(register_parameter("weight", {out, kernel, kernel, in}, weight_init, true)) {
  if (bias) bias_ = &register_parameter("bias", {out}, Init::zeros(), false);
}

Tensor Conv2d::forward(const Tensor& x, ConvActivation activation) const {
  use();
  return ops::conv2d(x, weight_.value, bias_ != nullptr ? bias_->value : Tensor(), window_, activation);
}

DepthwiseConv2d::DepthwiseConv2d(int64_t channels, int64_t kernel, ConvWindow window, bool bias, Init weight_init)
    : window_(window), weight_(register_parameter("weight", {kernel, kernel, channels}, weight_init, true)) {
  if (bias) bias_ = &register_parameter("bias", {channels}, Init::zeros(), false);
}

Tensor DepthwiseConv2d::forward(const Tensor& x) const {
  use();
  return ops::depthwise_conv2d(x, weight_.value, bias_ != nullptr ? bias_->value : Tensor(), window_);
}

GroupNorm::GroupNorm(int64_t channels, const ops::GroupNormOptions& options)
    : options_(options),
      weight_(register_parameter("weight", {channels}, Init::ones(), false)),
      bias_(register_parameter("bias", {channels}, Init::zeros(), false)) {}

Tensor GroupNorm::forward(const Tensor& x, const Tensor& scale, const Tensor& shift) const {
  use();
  return ops::group_norm(x, weight_.value, bias_.value, options_, scale, shift);
}

int64_t default_groups(int64_t channels) {
  int64_t groups = std::clamp<int64_t>(channels / 4, 1, 32);
  while (channels % groups != 0) --groups;
  return groups;
}

}  // namespace rz::nn
