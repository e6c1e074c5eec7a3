// A diffusion Transformer (Peebles and Xie 2022, arXiv 2212.09748) with adaLN-Zero:
//   (shift1, scale1, gate1, shift2, scale2, gate2) = modulation(c)        zero at first: every block is the identity
//   x = x + gate1 attention(LN(x) (1 + scale1) + shift1)
//   x = x + gate2 mlp(LN(x) (1 + scale2) + shift2)
//   y = out(LN(x) (1 + scale) + shift), zero at first
// Attention is the Transformer's own, seeing all tokens. Positions are fixed: grid_positions of network.h.
//
// Parameter names: in; condition.in, .out, .labels; blocks.I.modulation, .attention.qkv, .attention.out, .up, .down; modulation; out.
// Units: one per block; the rest is the outermost unit. Single-device code.
#pragma once

#include <memory>
#include <vector>

#include "models/diffusion/network.h"
#include "runtime/nn/attention.h"

namespace rz::models::diffusion {

class DiTBlock;

class DiT final : public ImageNetwork {
 public:
  explicit DiT(const DiTConfig& config);
  ~DiT() override;

  const DiTConfig& config() const { return config_; }
  std::vector<nn::Unit> units() override;
  Tensor forward(const Tensor& x_BHWC, const Tensor& noise_B, const Conditioning& conditioning, const SampleKey& key = {}) override;
  const ImageShape& image() const override { return config_.image; }
  int64_t out_channels() const override { return config_.out_channels; }
  int64_t classes() const override { return config_.classes; }

 private:
  DiTConfig config_;
  nn::Linear in_;
  ConditionEmbedding condition_;
  std::vector<std::unique_ptr<DiTBlock>> blocks_;
  nn::Linear modulation_;
  nn::Linear out_;
  Tensor positions_TD_;  // of the weights' type; made on first use
};

}  // namespace rz::models::diffusion
