// What UNet and DiT have in common: the interface that training and samplers see, and the embedding of noise levels.
//
// Images are [B, H, W, C], channels last, with data in [-1, 1]; the noise level is one number per sample, scaled as the process says
// (999 t, ln(sigma) / 4, ..): the embedding resolves numbers between about 1e-2 and 1e3.
// Legend: B batch, H height, W width, C channels, T tokens, D width.
#pragma once

#include <cstdint>

#include "models/diffusion/conditioning.h"
#include "models/diffusion/config.h"
#include "models/sample_key.h"
#include "runtime/nn/layers.h"

namespace rz::models::diffusion {

class ImageNetwork : public nn::Module {
 public:
  // x [B, H, W, C] and noise_B (f32 or f64) -> [B, H, W, out_channels] of x's type. Labels are i32 [B] in [0, classes], undefined:
  // none of the samples has one. `key` is what dropout is keyed by in training. rz::Error naming shapes that do not fit.
  virtual Tensor forward(const Tensor& x_BHWC, const Tensor& noise_B, const Conditioning& conditioning, const SampleKey& key = {}) = 0;

  virtual const ImageShape& image() const = 0;
  virtual int64_t out_channels() const = 0;
  virtual int64_t classes() const = 0;
  // The label that means "no label".
  int32_t null_label() const { return static_cast<int32_t>(classes()); }
};

// [cos(n f_i), sin(n f_i)] for the frequencies f_i = 10000^(-i / (width / 2)), i < width / 2: noise_B -> [B, width] of type `dtype`.
// Vaswani et al. 2017 in the order of Dhariwal and Nichol's code; `width` is even. Not recorded for backward.
Tensor noise_embedding(const Tensor& noise_B, int64_t width, DType dtype);

// Linear(SiLU(Linear(noise_embedding))), plus a learned vector per class; then SiLU, since every user begins with one.
class ConditionEmbedding final : public nn::Module {
 public:
  // `sinusoids`: width of the noise embedding. classes 0: noise alone.
  ConditionEmbedding(int64_t sinusoids, int64_t width, int64_t classes, nn::Init first, nn::Init second, nn::Init labels);
  // -> [B, width]. rz::Error for labels where there are no classes.
  Tensor forward(const Tensor& noise_B, const Conditioning& conditioning) const;

 private:
  int64_t sinusoids_;
  int64_t classes_;
  nn::Linear in_;
  nn::Linear out_;
  std::unique_ptr<nn::Embedding> labels_;
};

// rz::Error unless x is [B, H, W, C] of that shape and noise, where it is defined, has B levels.
void check_images(const char* network, const ImageShape& shape, const Tensor& x_BHWC, const Tensor& noise_B);

// Positions of a rows x columns grid, [rows columns, width] in f32: half of the width says the row, half the column, each as
// [sin(p f_i), cos(p f_i)], f_i = 10000^(-i / (width / 4)). `width` is divisible by 4.
Tensor grid_positions(int64_t rows, int64_t columns, int64_t width);

}  // namespace rz::models::diffusion
