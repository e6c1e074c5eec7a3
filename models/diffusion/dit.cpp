#include "models/diffusion/dit.h"

#include <cmath>

#include "runtime/autograd/grad_mode.h"
#include "runtime/ops/dropout.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/image.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/shape.h"

namespace rz::models::diffusion {

namespace {

constexpr int64_t kSinusoids = 256;  // width of the noise embedding
constexpr double kEmbeddingStd = 0.02;

DiTConfig completed(DiTConfig c) {
  c.check();
  if (c.out_channels == 0) c.out_channels = c.image.channels;
  if (c.mlp_width == 0) c.mlp_width = 4 * c.width;
  return c;
}

// Glorot and Bengio 2010, as a normal distribution.
nn::Init xavier(int64_t in, int64_t out) { return nn::Init::normal(std::sqrt(2.0 / static_cast<double>(in + out))); }

nn::AttentionConfig attention_config(const DiTConfig& c) {
  nn::AttentionConfig a;
  a.width = c.width;
  a.heads = c.heads;
  a.causal = false;
  a.init_std = xavier(c.width, 3 * c.width).std;
  a.output_init_std = xavier(c.width, c.width).std;
  return a;
}

// Part `index` of a modulation [B, parts D].
Tensor part(const Tensor& modulation, int64_t index, int64_t width) {
  return ops::slice(modulation, 1, index * width, (index + 1) * width);
}

}  // namespace

class DiTBlock final : public nn::Module {
 public:
  DiTBlock(const DiTConfig& c, std::string name)
      : name_(std::move(name)),
        width_(c.width),
        epsilon_(c.norm_epsilon),
        dropout_(c.dropout),
        modulation_(c.width, 6 * c.width, true, nn::Init::zeros()),
        attention_(attention_config(c)),
        up_(c.width, c.mlp_width, true, xavier(c.width, c.mlp_width)),
        down_(c.mlp_width, c.width, true, xavier(c.width, c.mlp_width)) {
    register_module("modulation", modulation_);
    register_module("attention", attention_);
    register_module("up", up_);
    register_module("down", down_);
  }

  const std::string& name() const { return name_; }

  Tensor forward(const Tensor& x_BTD, const Tensor& c_BD, const SampleKey& key) {
    const Tensor m = modulation_.forward(c_BD);
    const auto modulated = [&](const Tensor& x, int64_t first) {
      return ops::layer_norm_modulate(x, part(m, first + 1, width_), part(m, first, width_), epsilon_);
    };
    const auto add_gated = [&](const Tensor& x, const Tensor& h, int64_t index, const char* place) {
      const Tensor kept = ops::dropout(h, dropout_, {key.seed, name_ + place, key.step, key.first_sample}, training());
      return ops::add_gated(x, kept, part(m, index, width_));
    };
    const Tensor a_BTD = add_gated(x_BTD, attention_.forward(modulated(x_BTD, 0), nullptr), 2, ".attention");
    return add_gated(a_BTD, down_.forward(ops::gelu(up_.forward(modulated(a_BTD, 3)))), 5, ".mlp");
  }

 private:
  std::string name_;
  int64_t width_;
  double epsilon_;
  double dropout_;
  nn::Linear modulation_;
  nn::SelfAttention attention_;
  nn::Linear up_;
  nn::Linear down_;
};

DiT::DiT(const DiTConfig& config)
    : config_(completed(config)),
      in_(config_.patch * config_.patch * config_.image.channels, config_.width, true,
          xavier(config_.patch * config_.patch * config_.image.channels, config_.width)),
      condition_(kSinusoids, config_.width, config_.classes, nn::Init::normal(kEmbeddingStd), nn::Init::normal(kEmbeddingStd),
                 nn::Init::normal(kEmbeddingStd)),
      modulation_(config_.width, 2 * config_.width, true, nn::Init::zeros()),
      out_(config_.width, config_.patch * config_.patch * config_.out_channels, true, nn::Init::zeros()) {
  register_module("in", in_);
  register_module("condition", condition_);
  for (int64_t i = 0; i < config_.layers; ++i) {
    blocks_.push_back(std::make_unique<DiTBlock>(config_, fmt::format("blocks.{}", i)));
    register_module(blocks_.back()->name(), *blocks_.back());
  }
  register_module("modulation", modulation_);
  register_module("out", out_);
}

DiT::~DiT() = default;

std::vector<nn::Unit> DiT::units() {
  std::vector<nn::Unit> units;
  for (const auto& block : blocks_) units.push_back({block->name(), block.get()});
  return units;
}

Tensor DiT::forward(const Tensor& x_BHWC, const Tensor& noise_B, const Conditioning& conditioning, const SampleKey& key) {
  check_images("DiT", config_.image, x_BHWC, noise_B);
  const int64_t rows = config_.image.height / config_.patch, columns = config_.image.width / config_.patch;
  const DType dtype = in_.weight().dtype();
  if (!positions_TD_.defined() || positions_TD_.dtype() != dtype) {
    CategoryScope category(Category::parameter);
    autograd::NoGrad no_grad;
    positions_TD_ = ops::cast(grid_positions(rows, columns, config_.width), dtype);
  }
  const Tensor c_BD = condition_.forward(noise_B, conditioning);
  const Tensor patches = ops::space_to_depth(x_BHWC, config_.patch);
  Tensor x_BTD = ops::add(in_.forward(ops::reshape(patches, {x_BHWC.size(0), rows * columns, patches.size(3)})), positions_TD_);
  for (const auto& block : blocks_) {
    const nn::UnitForward forward = [&block = *block, key](const std::vector<Tensor>& in) { return block.forward(in[0], in[1], key); };
    x_BTD = nn::run_unit(*block, {x_BTD, c_BD}, [&](const std::vector<Tensor>& in) {
      return config_.recompute ? nn::recomputed(*block, in, forward) : forward(in);
    });
  }
  const Tensor m = modulation_.forward(c_BD);
  const Tensor y =
      out_.forward(ops::layer_norm_modulate(x_BTD, part(m, 1, config_.width), part(m, 0, config_.width), config_.norm_epsilon));
  return ops::depth_to_space(ops::reshape(y, {x_BHWC.size(0), rows, columns, y.size(2)}), config_.patch);
}

}  // namespace rz::models::diffusion
