// Multi-head self-attention with one fused projection, grouped queries, rotary positions and a key/value cache for generation.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/nn/layers.h"
#include "runtime/ops/rope.h"

namespace rz::nn {

struct AttentionConfig {
  int64_t width = 0;
  int64_t heads = 1;
  int64_t kv_heads = 0;  // 0: as many as heads
  bool causal = true;
  bool bias = true;
  double init_std = 0.02;
  double output_init_std = 0.02;  // 0: zeros
  bool recompute = false;  // keep neither queries, keys and values nor the attention's own numbers for backward
};

// Keys and values of the tokens seen so far, for one layer: [B, Hkv, capacity, D] each.
struct KeyValueCache {
  Tensor keys;
  Tensor values;
  int64_t length = 0;
};

// Parameters: qkv.weight [(H + 2 Hkv) D, width], rows q heads, then k heads, then v heads; out.weight [width, H D].
class SelfAttention final : public Module {
 public:
  // ConfigError unless heads divides width and kv_heads divides heads.
  explicit SelfAttention(const AttentionConfig& config);

  // x [B, T, width] -> the same. `rope` may be null.
  Tensor forward(const Tensor& x, const ops::RopeTable* rope);

  // The same for T further tokens after cache.length earlier ones, which it appends to the cache. Records nothing.
  Tensor forward_cached(const Tensor& x, const ops::RopeTable* rope, KeyValueCache& cache) const;
  KeyValueCache make_cache(int64_t batch, int64_t capacity) const;

 private:
  AttentionConfig config_;
  int64_t head_dim_;
  Linear qkv_;
  Linear out_;
};

}  // namespace rz::nn
