#include "models/diffusion/unet.h"

#include <algorithm>

#include "runtime/ops/dropout.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/image.h"
#include "runtime/ops/shape.h"

namespace rz::models::diffusion {

namespace {

constexpr int64_t kConditionWidths = 4;  // the condition is so many times as wide as the first level

UNetConfig completed(UNetConfig c) {
  c.check();
  if (c.out_channels == 0) c.out_channels = c.image.channels;
  return c;
}

int64_t condition_width(const UNetConfig& c) { return kConditionWidths * c.width; }

nn::GroupNorm make_norm(int64_t channels, const UNetConfig& c, bool silu) {
  return nn::GroupNorm(channels, {nn::default_groups(channels), c.norm_epsilon, silu});
}

nn::Conv2d make_conv3(int64_t in, int64_t out, int64_t stride, bool zero) {
  return nn::Conv2d(in, out, 3, {stride, 1}, true, zero ? nn::Init::zeros() : nn::fan_in_init(9 * in));
}

int64_t heads_of(int64_t channels, int64_t head_width) {
  int64_t heads = (channels + head_width - 1) / head_width;
  while (channels % heads != 0) ++heads;
  return heads;
}

bool attends(const UNetConfig& c, size_t level) {
  const int64_t height = c.image.height / c.patch >> level;
  return std::find(c.attention_heights.begin(), c.attention_heights.end(), height) != c.attention_heights.end();
}

}  // namespace

class UNetBlock final : public nn::Module {
 public:
  UNetBlock(std::string name, const UNetConfig& c, int64_t in, int64_t out, bool attention)
      : name_(std::move(name)),
        scale_shift_(c.scale_shift),
        dropout_(c.dropout),
        norm1_(make_norm(in, c, true)),
        conv1_(make_conv3(in, out, 1, false)),
        condition_(condition_width(c), c.scale_shift ? 2 * out : out, true, nn::fan_in_init(condition_width(c))),
        norm2_(make_norm(out, c, true)),
        conv2_(make_conv3(out, out, 1, true)) {
    register_module("norm1", norm1_);
    register_module("conv1", conv1_);
    register_module("condition", condition_);
    register_module("norm2", norm2_);
    register_module("conv2", conv2_);
    if (in != out) {
      shortcut_ = std::make_unique<nn::Conv2d>(in, out, 1, ConvWindow{}, true, nn::fan_in_init(in));
      register_module("shortcut", *shortcut_);
    }
    if (!attention) return;
    attention_norm_ = std::make_unique<nn::GroupNorm>(out, ops::GroupNormOptions{nn::default_groups(out), c.norm_epsilon, false});
    register_module("attention_norm", *attention_norm_);
    nn::AttentionConfig a;
    a.width = out;
    a.heads = heads_of(out, c.head_width);
    a.causal = false;
    a.init_std = nn::fan_in_init(out).std;
    a.output_init_std = 0;
    attention_ = std::make_unique<nn::SelfAttention>(a);
    register_module("attention", *attention_);
  }

  const std::string& name() const { return name_; }

  // x, c and, on the way up, the skip that is joined to x.
  Tensor forward(const Tensor& x_BHWC, const Tensor& skip, const Tensor& c_BD, const SampleKey& key) {
    const Tensor x = skip.defined() ? ops::concat({x_BHWC, skip}, 3) : x_BHWC;
    Tensor h = conv1_.forward(norm1_.forward(x));
    const Tensor condition = condition_.forward(c_BD);
    const int64_t channels = h.size(3);
    if (scale_shift_) {
      h = norm2_.forward(h, ops::slice(condition, 1, 0, channels), ops::slice(condition, 1, channels, 2 * channels));
    } else {
      h = norm2_.forward(ops::add(h, ops::reshape(condition, {h.size(0), 1, 1, channels})));
    }
    h = ops::dropout(h, dropout_, {key.seed, name_, key.step, key.first_sample}, training());
    Tensor y = ops::add(shortcut_ ? shortcut_->forward(x) : x, conv2_.forward(h));
    if (!attention_) return y;
    const Tensor tokens = ops::reshape(attention_norm_->forward(y), {y.size(0), y.size(1) * y.size(2), channels});
    return ops::add(y, ops::reshape(attention_->forward(tokens, nullptr), y.shape()));
  }

 private:
  std::string name_;
  bool scale_shift_;
  double dropout_;
  nn::GroupNorm norm1_;
  nn::Conv2d conv1_;
  nn::Linear condition_;
  nn::GroupNorm norm2_;
  nn::Conv2d conv2_;
  std::unique_ptr<nn::Conv2d> shortcut_;
  std::unique_ptr<nn::GroupNorm> attention_norm_;
  std::unique_ptr<nn::SelfAttention> attention_;
};

UNet::UNet(const UNetConfig& config)
    : config_(completed(config)),
      in_(make_conv3(config_.image.channels * config_.patch * config_.patch, config_.width, 1, false)),
      condition_(config_.width, condition_width(config_), config_.classes, nn::fan_in_init(config_.width),
                 nn::fan_in_init(condition_width(config_)), nn::Init::normal(1)),
      norm_(make_norm(config_.width * config_.multipliers[0], config_, true)),
      out_(make_conv3(config_.width * config_.multipliers[0], config_.out_channels * config_.patch * config_.patch, 1, true)) {
  register_module("in", in_);
  register_module("condition", condition_);
  const size_t levels = config_.multipliers.size();
  const auto channels_of = [&](size_t level) { return config_.width * config_.multipliers[level]; };
  const auto add_sample = [&](Level& level, const std::string& name, int64_t channels, int64_t stride) {
    level.sample = std::make_unique<nn::Conv2d>(channels, channels, 3, ConvWindow{stride, 1}, true, nn::fan_in_init(9 * channels));
    level.sample_name = name;
    register_module(name, *level.sample);
  };
  std::vector<int64_t> skips{config_.width};
  int64_t channels = config_.width;
  for (size_t i = 0; i < levels; ++i) {
    Level level;
    for (int64_t k = 0; k < config_.blocks; ++k) {
      level.blocks.push_back(make_block(fmt::format("down.{}.{}", i, k), channels, channels_of(i), attends(config_, i)));
      skips.push_back(channels = channels_of(i));
    }
    if (i + 1 < levels) {
      add_sample(level, fmt::format("down.{}.sample", i), channels, 2);
      skips.push_back(channels);
    }
    down_.push_back(std::move(level));
  }
  for (int k = 0; k < 2; ++k)
    middle_.push_back(make_block(fmt::format("middle.{}", k), channels, channels, k == 0 && config_.middle_attention));
  for (size_t i = levels; i-- > 0;) {
    Level level;
    for (int64_t k = 0; k <= config_.blocks; ++k) {
      level.blocks.push_back(make_block(fmt::format("up.{}.{}", i, k), channels + skips.back(), channels_of(i), attends(config_, i)));
      skips.pop_back();
      channels = channels_of(i);
    }
    if (i > 0) add_sample(level, fmt::format("up.{}.sample", i), channels, 1);
    up_.push_back(std::move(level));
  }
  register_module("norm", norm_);
  register_module("out", out_);
}

UNet::~UNet() = default;

std::unique_ptr<UNetBlock> UNet::make_block(std::string name, int64_t in, int64_t out, bool attention) {
  auto block = std::make_unique<UNetBlock>(std::move(name), config_, in, out, attention);
  register_module(block->name(), *block);
  return block;
}

std::vector<nn::Unit> UNet::units() {
  std::vector<nn::Unit> units;
  const auto add_level = [&](Level& level) {
    for (const auto& block : level.blocks) units.push_back({block->name(), block.get()});
    if (level.sample) units.push_back({level.sample_name, level.sample.get()});
  };
  for (Level& level : down_) add_level(level);
  for (const auto& block : middle_) units.push_back({block->name(), block.get()});
  for (Level& level : up_) add_level(level);
  return units;
}

Tensor UNet::run_block(UNetBlock& block, const Tensor& x, const Tensor& skip, const Tensor& c, const SampleKey& key) {
  std::vector<Tensor> inputs{x, c};
  if (skip.defined()) inputs.push_back(skip);
  const nn::UnitForward forward = [&block, key](const std::vector<Tensor>& in) {
    return block.forward(in[0], in.size() > 2 ? in[2] : Tensor(), in[1], key);
  };
  if (!config_.recompute) return nn::run_unit(block, std::move(inputs), forward);
  return nn::run_unit(block, std::move(inputs), [&](const std::vector<Tensor>& in) { return nn::recomputed(block, in, forward); });
}

Tensor UNet::forward(const Tensor& x_BHWC, const Tensor& noise_B, const Conditioning& conditioning, const SampleKey& key) {
  check_images("UNet", config_.image, x_BHWC, noise_B);
  const Tensor c_BD = condition_.forward(noise_B, conditioning);
  const auto run_sample = [](Level& level, const Tensor& x, bool up) {
    return nn::run_unit(*level.sample, {x},
                        [&](const std::vector<Tensor>& in) { return level.sample->forward(up ? ops::upsample(in[0]) : in[0]); });
  };
  Tensor h = in_.forward(config_.patch > 1 ? ops::space_to_depth(x_BHWC, config_.patch) : x_BHWC);
  std::vector<Tensor> skips{h};
  for (Level& level : down_) {
    for (const auto& block : level.blocks) skips.push_back(h = run_block(*block, h, {}, c_BD, key));
    if (level.sample) skips.push_back(h = run_sample(level, h, false));
  }
  for (const auto& block : middle_) h = run_block(*block, h, {}, c_BD, key);
  for (Level& level : up_) {
    for (const auto& block : level.blocks) {
      h = run_block(*block, h, skips.back(), c_BD, key);
      skips.pop_back();
    }
    if (level.sample) h = run_sample(level, h, true);
  }
  const Tensor y = out_.forward(norm_.forward(h));
  return config_.patch > 1 ? ops::depth_to_space(y, config_.patch) : y;
}

}  // namespace rz::models::diffusion
