// What a network is given besides x and the noise level. A small struct, so that text, images and the like can join labels.
#pragma once

#include <cstdint>
#include <functional>

#include "models/sample_key.h"
#include "runtime/core/tensor.h"

namespace rz::models::diffusion {

struct Conditioning {
  Tensor labels;  // i32 [B]; undefined: none. The class after the last (the number of classes) means "no label"
};

// F(x, noise, conditioning): x [B, ..] and noise f32 [B], one level per sample, to a tensor of x's shape (twice the channels for a
// learned variance) and type. During training the caller binds what else the network needs, such as the key of its dropout.
using Network = std::function<Tensor(const Tensor& x, const Tensor& noise_B, const Conditioning& conditioning)>;

// B labels, all of them `label`.
Tensor constant_labels(int64_t count, int32_t label);

// `labels` with each replaced by `null_label` with probability p, keyed by (seed, step, global sample index): what classifier-free
// guidance is trained with (Ho & Salimans 2022).
Tensor drop_labels(const Tensor& labels, double p, int32_t null_label, const SampleKey& key);

}  // namespace rz::models::diffusion
