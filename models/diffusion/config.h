// The shapes of the image networks: UNet, DiT and the classifier.
#pragma once

#include <cstdint>
#include <vector>

#include "models/transformer/config.h"

namespace rz::models::diffusion {

struct ImageShape {
  int64_t height = 28;
  int64_t width = 28;
  int64_t channels = 1;
};

// Ho et al. 2020 (arXiv 2006.11239), appendix B, with the options of Nichol and Dhariwal 2021 (arXiv 2102.09672).
struct UNetConfig {
  ImageShape image;
  int64_t out_channels = 0;  // 0: as many as the image has; twice as many where the network also predicts a variance
  int64_t patch = 1;         // blocks of patch x patch pixels become channels before the first layer: 2 makes it 4 times cheaper
  int64_t width = 32;        // channels of the first level
  std::vector<int64_t> multipliers = {1, 2, 2};  // channels of each level, in multiples of `width`; each level halves height and width
  int64_t blocks = 2;                            // residual blocks of a level on the way down; one more on the way up
  std::vector<int64_t> attention_heights = {};   // levels of this height (after `patch`) attend after each of their blocks
  bool middle_attention = true;
  int64_t head_width = 32;  // channels of an attention head, at most; the largest divisor of a level's channels is taken
  bool scale_shift = true;  // time and class scale and shift the second norm of a block; otherwise they are added before it
  double dropout = 0;
  int64_t classes = 0;  // above 0: conditional, with one more class that means "no label"
  double norm_epsilon = 1e-5;
  bool recompute = false;  // backward computes the blocks again: only their inputs are kept

  // ConfigError naming field and value for an impossible one.
  void check() const;
};

// Peebles and Xie 2022 (arXiv 2212.09748), with adaLN-Zero.
struct DiTConfig {
  ImageShape image;
  int64_t out_channels = 0;  // as in UNetConfig
  int64_t patch = 4;         // a token is patch x patch pixels
  int64_t layers = 6;
  int64_t width = 128;  // divisible by 4 and by heads
  int64_t heads = 4;
  int64_t mlp_width = 0;  // 0: 4 width
  double dropout = 0;
  int64_t classes = 0;
  double norm_epsilon = 1e-6;
  bool recompute = false;

  int64_t tokens() const { return image.height / patch * (image.width / patch); }
  void check() const;
};

// Convolution, pooling, convolution, pooling, two linear layers: what measures samples, and what guides them.
struct ClassifierConfig {
  ImageShape image;
  int64_t classes = 10;
  int64_t width1 = 32;        // channels of the first convolution
  int64_t width2 = 64;        // of the second
  int64_t features = 128;     // width of the last hidden layer
  bool noise_levels = false;  // takes noise levels beside images: for guidance

  void check() const;
};

}  // namespace rz::models::diffusion
