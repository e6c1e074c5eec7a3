#include "runtime/nn/attention.h"

#include "runtime/autograd/grad_mode.h"
#include "runtime/kernels/backend.h"
#include "runtime/ops/attention.h"

namespace rz::nn {

namespace {
// Checked before the members that divide by it are made.
AttentionConfig checked(AttentionConfig c) {
  if (c.kv_heads == 0) c.kv_heads = c.heads;
  RZ_CONFIG_CHECK(c.heads >= 1 && c.width >= 1 && c.width % c.heads == 0, "attention width {} is not divisible by {} heads", c.width, c.heads);
  RZ_CONFIG_CHECK(c.kv_heads >= 1 && c.heads % c.kv_heads == 0, "{} query heads are not divisible by {} key/value heads", c.heads, c.kv_heads);
  return c;
}

Init init_of(double std) { return std == 0 ? Init::zeros() : Init::normal(std); }
}  // namespace

SelfAttention::SelfAttention(const AttentionConfig& config)
    : config_(checked(config)),
      head_dim_(config_.width / config_.heads),
      qkv_(config_.width, (config_.heads + 2 * config_.kv_heads) * head_dim_, config_.bias, init_of(config_.init_std)),
      out_(config_.heads * head_dim_, config_.width, config_.bias, init_of(config_.output_init_std)) {
  register_module("qkv", qkv_);
  register_module("out", out_);
}

Tensor SelfAttention::forward(const Tensor& x, const ops::RopeTable* rope) {
  ops::AttentionQkvOptions options;
  options.heads = config_.heads;
  options.kv_heads = config_.kv_heads;
  options.causal = config_.causal;
  options.rope = rope;
  const auto attend = [this, options](const std::vector<Tensor>& in) { return ops::attention_qkv(qkv_.forward(in[0]), options); };
  return out_.forward(config_.recompute ? recomputed(qkv_, {x}, attend) : attend({x}));
}

KeyValueCache SelfAttention::make_cache(int64_t batch, int64_t capacity) const {
  const Shape shape{batch, config_.kv_heads, capacity, head_dim_};
  const DType dtype = qkv_.weight().dtype();
  return {Tensor::empty(shape, dtype, Category::workspace, "key cache"), Tensor::empty(shape, dtype, Category::workspace, "value cache"), 0};
}

Tensor SelfAttention::forward_cached(const Tensor& x, const ops::RopeTable* rope, KeyValueCache& cache) const {
  autograd::NoGrad no_grad;
  const int64_t batch = x.size(0);
  const int64_t tokens = x.size(1);
  const int64_t end = cache.length + tokens;
  RZ_CHECK(end <= cache.keys.size(2), "{} tokens do not fit into a cache of {} that holds {}", tokens, cache.keys.size(2), cache.length);
  const Tensor qkv = qkv_.forward(x).view_reshape({batch, tokens, config_.heads + 2 * config_.kv_heads, head_dim_});
  Tensor q = qkv.view_slice(2, 0, config_.heads);
  Tensor k = qkv.view_slice(2, config_.heads, config_.heads + config_.kv_heads);
  const Tensor v = qkv.view_slice(2, config_.heads + config_.kv_heads, config_.heads + 2 * config_.kv_heads);
  if (rope != nullptr) {
    q = ops::rope(q, *rope, cache.length);
    k = ops::rope(k, *rope, cache.length);
  }
  auto& elementwise = *backend(x.device()).elementwise;
  Tensor new_keys = cache.keys.view_slice(2, cache.length, end);
  Tensor new_values = cache.values.view_slice(2, cache.length, end);
  elementwise.copy(k.view_transpose(1, 2), new_keys);
  elementwise.copy(v.view_transpose(1, 2), new_values);
  cache.length = end;
  ops::AttentionOptions options;
  options.causal = config_.causal;
  const Tensor y = ops::scaled_dot_product_attention(q.view_transpose(1, 2), cache.keys.view_slice(2, 0, end), cache.values.view_slice(2, 0, end), options);
  return out_.forward(y.view_transpose(1, 2).view_reshape({batch, tokens, config_.heads * head_dim_}));
}

}  // namespace rz::nn
