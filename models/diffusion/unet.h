// A UNet for diffusion (Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672).
//
//   block(x, c):  h = conv1(SiLU(norm1(x)));  (scale, shift) = condition(c);  h = SiLU(norm2(h) (1 + scale) + shift)
//                 x' = shortcut(x) + conv2(dropout(h)), conv2 zero at first;  then x' + attention(norm(x')) on chosen levels
//   down: blocks, then a convolution of stride 2; middle: block, attention, block; up: blocks on [h, skip], then twice the size and
//   a convolution; every output of the way down is a skip. out = conv(SiLU(norm(h))), zero at first: an untrained network returns 0.
//
// Parameter names: in; condition.in, .out, .labels; down.L.I.*, down.L.sample; middle.0, .1; up.L.I.*, up.L.sample; norm; out.
// Inside a block: norm1, conv1, condition, norm2, conv2, shortcut, attention_norm, attention.qkv, attention.out.
// Units: one per block and per resampling; the rest is the outermost unit. Single-device code.
#pragma once

#include <memory>
#include <vector>

#include "models/diffusion/network.h"
#include "runtime/nn/attention.h"
#include "runtime/nn/image_layers.h"

namespace rz::models::diffusion {

class UNetBlock;

class UNet final : public ImageNetwork {
 public:
  explicit UNet(const UNetConfig& config);
  ~UNet() override;

  const UNetConfig& config() const { return config_; }
  std::vector<nn::Unit> units() override;
  Tensor forward(const Tensor& x_BHWC, const Tensor& noise_B, const Conditioning& conditioning, const SampleKey& key = {}) override;
  const ImageShape& image() const override { return config_.image; }
  int64_t out_channels() const override { return config_.out_channels; }
  int64_t classes() const override { return config_.classes; }

 private:
  struct Level {
    std::vector<std::unique_ptr<UNetBlock>> blocks;
    std::unique_ptr<nn::Conv2d> sample;  // to the next level's size; the last has none
    std::string sample_name;
  };

  Tensor run_block(UNetBlock& block, const Tensor& x, const Tensor& skip, const Tensor& c, const SampleKey& key);
  std::unique_ptr<UNetBlock> make_block(std::string name, int64_t in, int64_t out, bool attention);

  UNetConfig config_;
  nn::Conv2d in_;
  ConditionEmbedding condition_;
  std::vector<Level> down_;
  std::vector<std::unique_ptr<UNetBlock>> middle_;
  std::vector<Level> up_;  // in the order of their running: the smallest first
  nn::GroupNorm norm_;
  nn::Conv2d out_;
};

}  // namespace rz::models::diffusion
