// Scaled dot-product attention, softmax(scale Q K^T + mask) V, in tiles with an online softmax: no T x S matrix is ever held.
// Dao et al., "FlashAttention", NeurIPS 2022, algorithms 1 and 4, and "FlashAttention-2", 2023.
//
// * Kept for backward: q, k, v, the output, and L = max + log(sum) of each row; backward recomputes P = exp(S - L).
// * Grouped queries: query head h reads key/value head h / (H / Hkv). H must be a multiple of Hkv.
// * Causal: query t sees keys 0 .. t + (S - T), so that with a cache of S keys the T queries are the last ones. A query that sees
//   no key (only when S < T) gets the output 0 and no gradient.
// * Deterministic: the same bits for any number of threads.
// Legend: B batch, H query heads, Hkv key/value heads, T queries, S keys, D width of a head.
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"
#include "runtime/ops/rope.h"

namespace rz::ops {

struct AttentionOptions {
  bool causal = false;
  double scale = 0;  // 0: 1 / sqrt(D)
};

// q [B, H, T, D], k and v [B, Hkv, S, D] -> [B, H, T, D]. Strided views are read in place as long as the last dimension is
// contiguous (slices of a fused projection, a key/value cache). The result is a view of [B, T, H, D] memory: permuting it back to
// [B, T, H, D] and flattening the heads copies nothing. Gradients come in the same layout.
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options = {});

struct AttentionQkvOptions {
  int64_t heads = 1;
  int64_t kv_heads = 0;  // 0: as many as heads
  bool causal = true;
  double scale = 0;              // 0: 1 / sqrt(D)
  const RopeTable* rope = nullptr;  // rotate queries and keys inside the kernel; read during the call only, its memory is shared
  int64_t rope_offset = 0;          // position of the first token
};

// Self-attention straight from a fused projection: qkv [B, T, (H + 2 Hkv) D], in it q [H, D], k [Hkv, D], v [Hkv, D] one after
// another -> [B, T, H D]. The same numbers as splitting, rotating and calling scaled_dot_product_attention; no layout copies, no
// rotated copies, and one gradient tensor of qkv's shape written in place.
Tensor attention_qkv(const Tensor& qkv, const AttentionQkvOptions& options);

}  // namespace rz::ops
