// A decoder-only Transformer language model (Vaswani et al. 2017; GPT-2: Radford et al. 2019; Llama: Touvron et al. 2023).
// Pre-norm blocks:  x = x + attention(norm1(x));  x = x + mlp(norm2(x));  logits = head(norm(x)).
//
// Parameter names (docs/transformer.md maps them to published checkpoints):
//   wte.weight [V, D]; wpe.weight [context, D] (learned positions);
//   blocks.i.norm1, .attn.qkv, .attn.out, .norm2, .mlp.up, .mlp.gate (SwiGLU), .mlp.down; norm; head.weight [V, D] (untied)
// Initialization as GPT-2: normal(0.02), the projections back into the residual stream normal(0.02 / sqrt(2 layers)).
// Units: one per block; embeddings, final norm and head are the outermost unit.
// Single-device code. Legend: B batch, T time, D width, H heads, V vocabulary.
#pragma once

#include <memory>
#include <vector>

#include "models/sample_key.h"
#include "models/transformer/config.h"
#include "runtime/nn/attention.h"
#include "runtime/ops/loss.h"

namespace rz::models {

class TransformerBlock;

class Transformer final : public nn::Module {
 public:
  explicit Transformer(const TransformerConfig& config);
  ~Transformer() override;

  const TransformerConfig& config() const { return config_; }
  std::vector<nn::Unit> units() override;

  // ids i32 [B, T], T <= context -> logits [B, T, V].
  Tensor forward(const Tensor& ids_BT, const SampleKey& key = {});

  // scale * sum of the cross entropies of predicting targets (i32 [B, T]).
  ops::CrossEntropyResult loss(const Tensor& ids_BT, const Tensor& targets_BT, double scale, const SampleKey& key = {});

  // Generation: logits [B, V] after the last of T further tokens. One cache per block; make_caches(batch) starts a sequence.
  std::vector<nn::KeyValueCache> make_caches(int64_t batch) const;
  Tensor forward_cached(const Tensor& ids_BT, std::vector<nn::KeyValueCache>& caches);

 private:
  Tensor embed(const Tensor& ids_BT, int64_t first_position) const;
  Tensor features(const Tensor& ids_BT, const SampleKey& key);  // after the final norm, [B, T, D]
  const Tensor& head_weight() const;
  const ops::RopeTable* rope();  // null with learned positions; of the weights' compute type

  TransformerConfig config_;
  nn::Embedding wte_;
  std::unique_ptr<nn::Embedding> wpe_;
  std::vector<std::unique_ptr<TransformerBlock>> blocks_;
  nn::Norm norm_;
  std::unique_ptr<nn::Linear> head_;
  ops::RopeTable rope_;
};

}  // namespace rz::models
