// Layers of images, channels last: [N, H, W, C]. Pooling, upsampling and space-to-depth have no parameters: they are functions of
// ops/image.h.
#pragma once

#include <cstdint>

#include "runtime/nn/module.h"
#include "runtime/ops/conv.h"
#include "runtime/ops/group_norm.h"

namespace rz::nn {

// Normal initial values that keep the variance of what a sum over `inputs` terms yields.
Init fan_in_init(int64_t inputs, double gain = 1);

// weight [out, kernel, kernel, in]; bias [out] or none.
class Conv2d final : public Module {
 public:
  Conv2d(int64_t in, int64_t out, int64_t kernel, ConvWindow window, bool bias, Init weight_init);
  Tensor forward(const Tensor& x, ConvActivation activation = ConvActivation::none) const;
  bool announces_uses() const override { return true; }

 private:
  ConvWindow window_;
  Parameter& weight_;
  Parameter* bias_ = nullptr;
};

// weight [kernel, kernel, channels]; bias [channels] or none.
class DepthwiseConv2d final : public Module {
 public:
  DepthwiseConv2d(int64_t channels, int64_t kernel, ConvWindow window, bool bias, Init weight_init);
  Tensor forward(const Tensor& x) const;
  bool announces_uses() const override { return true; }

 private:
  ConvWindow window_;
  Parameter& weight_;
  Parameter* bias_ = nullptr;
};

// Group norm with weight and bias [channels], then what options say; scale and shift [N, channels] may be undefined.
class GroupNorm final : public Module {
 public:
  GroupNorm(int64_t channels, const ops::GroupNormOptions& options);
  Tensor forward(const Tensor& x, const Tensor& scale = {}, const Tensor& shift = {}) const;
  bool announces_uses() const override { return true; }

 private:
  ops::GroupNormOptions options_;
  Parameter& weight_;
  Parameter& bias_;
};

// As many groups as divide `channels`, at most 32 and at least 4 channels wide where that is possible.
int64_t default_groups(int64_t channels);

}  // namespace rz::nn
