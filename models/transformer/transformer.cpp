#include "models/transformer/transformer.h"

#include <algorithm>
#include <cmath>

#include "runtime/autograd/grad_mode.h"
#include "runtime/autograd/recompute.h"
#include "runtime/ops/dropout.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/shape.h"

namespace rz::models {

namespace {

constexpr double kInitStd = 0.02;
// Above this many symbols the logits of a whole batch are never held at once.
constexpr int64_t kChunkedHeadFrom = 8192;

double residual_std(const TransformerConfig& c) { return kInitStd / std::sqrt(2.0 * static_cast<double>(c.layers)); }

TransformerConfig checked(const TransformerConfig& config) {
  config.check();
  return config;
}

nn::AttentionConfig attention_config(const TransformerConfig& c) {
  nn::AttentionConfig a;
  a.width = c.width;
  a.heads = c.heads;
  a.kv_heads = c.kv_heads;
  a.bias = c.bias;
  a.init_std = kInitStd;
  a.output_init_std = residual_std(c);
  a.recompute = c.recompute == Recompute::selective;
  return a;
}

}  // namespace

int64_t TransformerConfig::hidden_width() const {
  if (mlp_width > 0) return mlp_width;
  return mlp == MlpKind::gelu ? 4 * width : (8 * width / 3 + 31) / 32 * 32;
}

void TransformerConfig::check() const {
  RZ_CONFIG_CHECK(layers >= 1, "layers must be at least 1, not {}", layers);
  RZ_CONFIG_CHECK(width >= 1 && heads >= 1 && width % heads == 0, "width {} is not divisible by {} heads", width, heads);
  RZ_CONFIG_CHECK(kv_heads >= 0 && (kv_heads == 0 || heads % kv_heads == 0), "heads {} is not divisible by kv_heads {}", heads, kv_heads);
  RZ_CONFIG_CHECK(context >= 1, "context must be at least 1, not {}", context);
  RZ_CONFIG_CHECK(vocabulary >= 1, "vocabulary must be at least 1, not {}", vocabulary);
  RZ_CONFIG_CHECK(mlp_width >= 0, "mlp_width must not be negative: {}", mlp_width);
  RZ_CONFIG_CHECK(dropout >= 0 && dropout < 1, "dropout must be in [0, 1), not {}", dropout);
  RZ_CONFIG_CHECK(positions == Positions::learned || width / heads % 2 == 0, "rotary positions need an even head width, not {} / {} = {}", width,
                  heads, width / heads);
  RZ_CONFIG_CHECK(rope_base > 1 && norm_epsilon > 0, "rope_base {} must be above 1 and norm_epsilon {} above 0", rope_base, norm_epsilon);
}

// Where dropout is applied in one run of the model; empty place names come from the block.
struct DropoutContext {
  double p = 0;
  bool train = false;
  SampleKey key;
  Tensor apply(const Tensor& x, const std::string& place) const {
    return ops::dropout(x, p, {key.seed, place, key.step, key.first_sample}, train);
  }
};

// up, GELU, down; or down(silu(gate) * up).
class Mlp final : public nn::Module {
 public:
  explicit Mlp(const TransformerConfig& c)
      : up_(c.width, c.hidden_width(), c.bias, nn::Init::normal(kInitStd)),
        down_(c.hidden_width(), c.width, c.bias, nn::Init::normal(residual_std(c))) {
    if (c.mlp == MlpKind::swiglu) {
      gate_ = std::make_unique<nn::Linear>(c.width, c.hidden_width(), c.bias, nn::Init::normal(kInitStd));
      register_module("gate", *gate_);
    }
    register_module("up", up_);
    register_module("down", down_);
  }

  Tensor forward(const Tensor& x) const {
    if (gate_) return down_.forward(ops::silu_mul(gate_->forward(x), up_.forward(x)));
    return down_.forward(ops::gelu(up_.forward(x)));
  }

 private:
  nn::Linear up_;
  nn::Linear down_;
  std::unique_ptr<nn::Linear> gate_;
};

class TransformerBlock final : public nn::Module {
 public:
  TransformerBlock(const TransformerConfig& c, std::string name)
      : name_(std::move(name)),
        norm1_(c.norm, c.width, c.bias, c.norm_epsilon),
        attention_(attention_config(c)),
        norm2_(c.norm, c.width, c.bias, c.norm_epsilon),
        mlp_(c) {
    register_module("norm1", norm1_);
    register_module("attn", attention_);
    register_module("norm2", norm2_);
    register_module("mlp", mlp_);
  }

  Tensor forward(const Tensor& x_BTD, const ops::RopeTable* rope, const DropoutContext& drop) {
    const Tensor a_BTD = ops::add(x_BTD, drop.apply(attention_.forward(norm1_.forward(x_BTD), rope), name_ + ".attn"));
    return ops::add(a_BTD, drop.apply(mlp_.forward(norm2_.forward(a_BTD)), name_ + ".mlp"));
  }

  Tensor forward_cached(const Tensor& x_BTD, const ops::RopeTable* rope, nn::KeyValueCache& cache) const {
    const Tensor a_BTD = ops::add(x_BTD, attention_.forward_cached(norm1_.forward(x_BTD), rope, cache));
    return ops::add(a_BTD, mlp_.forward(norm2_.forward(a_BTD)));
  }

  const std::string& name() const { return name_; }
  const nn::SelfAttention& attention() const { return attention_; }

 private:
  std::string name_;
  nn::Norm norm1_;
  nn::SelfAttention attention_;
  nn::Norm norm2_;
  Mlp mlp_;
};

Transformer::Transformer(const TransformerConfig& config)
    : config_(checked(config)),
      wte_(config.vocabulary, config.width, nn::Init::normal(kInitStd)),
      norm_(config.norm, config.width, config.bias, config.norm_epsilon) {
  register_module("wte", wte_);
  if (config.positions == Positions::learned) {
    wpe_ = std::make_unique<nn::Embedding>(config.context, config.width, nn::Init::normal(kInitStd));
    register_module("wpe", *wpe_);
  }
  for (int64_t i = 0; i < config.layers; ++i) {
    blocks_.push_back(std::make_unique<TransformerBlock>(config, fmt::format("blocks.{}", i)));
    register_module(blocks_.back()->name(), *blocks_.back());
  }
  register_module("norm", norm_);
  if (!config.tied_head) {
    head_ = std::make_unique<nn::Linear>(config.width, config.vocabulary, false, nn::Init::normal(kInitStd));
    register_module("head", *head_);
  }
}

Transformer::~Transformer() = default;

std::vector<nn::Unit> Transformer::units() {
  std::vector<nn::Unit> units;
  for (const auto& block : blocks_) units.push_back({block->name(), block.get()});
  return units;
}

const Tensor& Transformer::head_weight() const { return head_ ? head_->weight() : wte_.weight(); }

const ops::RopeTable* Transformer::rope() {
  if (wpe_) return nullptr;
  const DType wanted = compute_dtype(wte_.weight().dtype());
  if (!rope_.values.defined() || rope_.values.dtype() != wanted)
    rope_ = ops::make_rope_table(config_.context, config_.width / config_.heads, config_.rope_base, wanted);
  return &rope_;
}

Tensor Transformer::embed(const Tensor& ids_BT, int64_t first_position) const {
  const int64_t end = first_position + ids_BT.size(-1);
  RZ_CHECK(ids_BT.rank() == 2 && end <= config_.context, "tokens {} from position {} do not fit a context of {}", ids_BT.str(), first_position,
           config_.context);
  Tensor x_BTD = wte_.forward(ids_BT);
  if (!wpe_) return x_BTD;
  return ops::add(x_BTD, ops::slice(wpe_->weight(), 0, first_position, end));
}

Tensor Transformer::features(const Tensor& ids_BT, const SampleKey& key) {
  const DropoutContext drop{config_.dropout, training(), key};
  Tensor x_BTD = drop.apply(embed(ids_BT, 0), "embedding");
  const auto run_block = [this, drop](TransformerBlock& block, const Tensor& x) {
    const nn::UnitForward forward = [this, &block, drop](const std::vector<Tensor>& in) { return block.forward(in[0], rope(), drop); };
    if (config_.recompute != Recompute::full) return nn::run_unit(block, {x}, forward);
    return nn::run_unit(block, {x}, [&](const std::vector<Tensor>& in) { return nn::recomputed(block, in, forward); });
  };
  if (config_.recompute != Recompute::sqrt) {
    for (const auto& block : blocks_) x_BTD = run_block(*block, x_BTD);
    return norm_.forward(x_BTD);
  }
  const auto segment = static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(config_.layers))));
  for (size_t begin = 0; begin < blocks_.size(); begin += segment) {
    const size_t end = std::min(begin + segment, blocks_.size());
    std::vector<Tensor> parameters;
    for (size_t i = begin; i < end; ++i)
      for (const nn::Parameter* p : blocks_[i]->parameters()) parameters.push_back(p->value);
    const auto forward = [this, run_block, begin, end](const std::vector<Tensor>& in) {
      Tensor x = in[0];
      for (size_t i = begin; i < end; ++i) x = run_block(*blocks_[i], x);
      return x;
    };
    x_BTD = autograd::recompute(forward, {x_BTD}, parameters);
  }
  return norm_.forward(x_BTD);
}

Tensor Transformer::forward(const Tensor& ids_BT, const SampleKey& key) { return ops::linear(features(ids_BT, key), head_weight(), {}); }

ops::CrossEntropyResult Transformer::loss(const Tensor& ids_BT, const Tensor& targets_BT, double scale, const SampleKey& key) {
  ops::CrossEntropyOptions options;
  options.reduction = ops::LossReduction::sum;
  options.scale = scale;
  const Tensor x_BTD = features(ids_BT, key);
  if (config_.vocabulary >= kChunkedHeadFrom) return ops::linear_cross_entropy(x_BTD, head_weight(), targets_BT, options);
  options.overwrite_logits = true;
  return ops::cross_entropy(ops::linear(x_BTD, head_weight(), {}), targets_BT, options);
}

std::vector<nn::KeyValueCache> Transformer::make_caches(int64_t batch) const {
  std::vector<nn::KeyValueCache> caches;
  for (const auto& block : blocks_) caches.push_back(block->attention().make_cache(batch, config_.context));
  return caches;
}

Tensor Transformer::forward_cached(const Tensor& ids_BT, std::vector<nn::KeyValueCache>& caches) {
  autograd::NoGrad no_grad;
  RZ_CHECK(caches.size() == blocks_.size(), "{} caches for {} blocks", caches.size(), blocks_.size());
  Tensor x_BTD = embed(ids_BT, caches.front().length);
  for (size_t i = 0; i < blocks_.size(); ++i)
    x_BTD = nn::run_unit(*blocks_[i], {x_BTD}, [&](const std::vector<Tensor>& in) { return blocks_[i]->forward_cached(in[0], rope(), caches[i]); });
  const Tensor last_BD = x_BTD.view_slice(1, x_BTD.size(1) - 1, x_BTD.size(1));
  return ops::linear(norm_.forward(last_BD), head_weight(), {}).view_reshape({ids_BT.size(0), config_.vocabulary});
}

}  // namespace rz::models
