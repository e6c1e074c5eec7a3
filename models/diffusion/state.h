// What samplers do to their state, for tensors: linear combinations with coefficients in double, and little else. moments.h does the
// same for means and variances, which is why a sampler's exact output distribution comes from the code that samples images.
#pragma once

#include <utility>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::models::diffusion {

// a x; a x + b y (+ c z): elementwise.
Tensor scaled(double a, const Tensor& x);
Tensor combine(double a, const Tensor& x, double b, const Tensor& y);
Tensor combine(double a, const Tensor& x, double b, const Tensor& y, double c, const Tensor& z);
// factor x, where factor broadcasts to x.
Tensor times(const Tensor& factor, const Tensor& x);
// The mean over each sample's elements: [B].
Tensor mean_per_sample(const Tensor& x);
// Root mean square of z over that of y, for each sample: [B, 1, ..].
Tensor rms_ratio(const Tensor& z, const Tensor& y);
// Standard deviation exp(log_variance / 2) with log_variance between `smallest` (v = -1) and `largest` (v = 1).
Tensor learned_std(const Tensor& v, double smallest, double largest);

// A network's output with twice the channels of `shape` along `channel_dim`, in halves.
std::pair<Tensor, Tensor> split_channels(const Tensor& output, const Shape& shape, int channel_dim);

// One number per sample as a tensor that broadcasts over samples of `shape`: [B, 1, ..].
Tensor per_sample(const std::vector<double>& values, const Shape& shape, DType dtype);

}  // namespace rz::models::diffusion
