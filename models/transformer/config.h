// The shape of a decoder-only Transformer: GPT-2 (learned positions, layer norm, GELU, biases, tied head), Llama (rotary
// positions, RMS norm, SwiGLU, grouped queries, no biases, untied head) and everything between.
#pragma once

#include <cstdint>

#include "runtime/nn/layers.h"

namespace rz::models {

enum class Positions : uint8_t { learned, rope };
enum class MlpKind : uint8_t { gelu, swiglu };

// What backward computes again instead of keeping it.
//   none       nothing
//   selective  queries, keys, values and the attention's own numbers (Korthikanti et al. 2022, arXiv 2205.05198)
//   full       everything inside a block: only the blocks' inputs are kept
//   sqrt       everything inside segments of about sqrt(layers) blocks (Chen et al. 2016, arXiv 1604.06174)
enum class Recompute : uint8_t { none, selective, full, sqrt };

struct TransformerConfig {
  int64_t layers = 6;
  int64_t width = 384;
  int64_t heads = 6;
  int64_t kv_heads = 0;    // 0: as many as heads
  int64_t context = 256;   // longest sequence, tokens
  int64_t vocabulary = 256;
  int64_t mlp_width = 0;   // 0: 4 width, or 8/3 width rounded up to a multiple of 32 for SwiGLU
  Positions positions = Positions::learned;
  nn::NormKind norm = nn::NormKind::layer_norm;
  MlpKind mlp = MlpKind::gelu;
  bool bias = true;
  bool tied_head = true;
  double dropout = 0;
  double rope_base = 10000;
  double norm_epsilon = 1e-5;
  Recompute recompute = Recompute::none;

  // The hidden width of the MLP with the default filled in.
  int64_t hidden_width() const;
  // ConfigError naming field and value for an impossible one.
  void check() const;
};

}  // namespace rz::models
