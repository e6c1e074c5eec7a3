#include "models/diffusion/network.h"

#include <cmath>
#include <vector>

#include "runtime/autograd/grad_mode.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/shape.h"

namespace rz::models::diffusion {

namespace {

constexpr double kSlowest = 10000;  // period of the slowest frequency, in units of 2 pi

void check_image(const ImageShape& image) {
  RZ_CONFIG_CHECK(image.height >= 1 && image.width >= 1 && image.channels >= 1, "an image of {} x {} pixels with {} channels is impossible",
                  image.height, image.width, image.channels);
}

void check_common(const ImageShape& image, int64_t out_channels, int64_t patch, double dropout, int64_t classes, double epsilon) {
  check_image(image);
  RZ_CONFIG_CHECK(out_channels >= 0, "out_channels must not be negative: {}", out_channels);
  RZ_CONFIG_CHECK(patch >= 1 && image.height % patch == 0 && image.width % patch == 0,
                  "images of {} x {} pixels do not divide into patches of {} x {}", image.height, image.width, patch, patch);
  RZ_CONFIG_CHECK(dropout >= 0 && dropout < 1, "dropout must be in [0, 1), not {}", dropout);
  RZ_CONFIG_CHECK(classes >= 0, "classes must not be negative: {}", classes);
  RZ_CONFIG_CHECK(epsilon > 0, "norm_epsilon must be above 0, not {}", epsilon);
}

}  // namespace

void UNetConfig::check() const {
  check_common(image, out_channels, patch, dropout, classes, norm_epsilon);
  RZ_CONFIG_CHECK(width >= 2 && width % 2 == 0, "width must be an even number of channels, not {}", width);
  RZ_CONFIG_CHECK(blocks >= 1, "blocks must be at least 1, not {}", blocks);
  RZ_CONFIG_CHECK(head_width >= 1, "head_width must be at least 1, not {}", head_width);
  RZ_CONFIG_CHECK(!multipliers.empty(), "multipliers must name at least one level");
  int64_t height = image.height / patch, columns = image.width / patch;
  for (size_t level = 0; level < multipliers.size(); ++level) {
    RZ_CONFIG_CHECK(multipliers[level] >= 1, "multipliers must be at least 1, not {}", multipliers[level]);
    if (level == 0) continue;
    RZ_CONFIG_CHECK(height % 2 == 0 && columns % 2 == 0, "level {} of {} cannot halve images of {} x {}: take fewer multipliers", level,
                    multipliers.size() - 1, height, columns);
    height /= 2, columns /= 2;
  }
  for (const int64_t wanted : attention_heights) {
    bool found = false;
    for (size_t level = 0; level < multipliers.size(); ++level) found |= image.height / patch >> level == wanted;
    RZ_CONFIG_CHECK(found, "no level has the attention height {}: levels begin at {} and halve {} times", wanted, image.height / patch,
                    multipliers.size() - 1);
  }
}

void DiTConfig::check() const {
  check_common(image, out_channels, patch, dropout, classes, norm_epsilon);
  RZ_CONFIG_CHECK(layers >= 1, "layers must be at least 1, not {}", layers);
  RZ_CONFIG_CHECK(width >= 4 && width % 4 == 0, "width must be divisible by 4 for two-dimensional positions, not {}", width);
  RZ_CONFIG_CHECK(heads >= 1 && width % heads == 0, "width {} is not divisible by {} heads", width, heads);
  RZ_CONFIG_CHECK(mlp_width >= 0, "mlp_width must not be negative: {}", mlp_width);
}

void ClassifierConfig::check() const {
  check_image(image);
  RZ_CONFIG_CHECK(image.height >= 4 && image.width >= 4, "the classifier pools twice: images of {} x {} pixels are too small", image.height,
                  image.width);
  RZ_CONFIG_CHECK(classes >= 2, "classes must be at least 2, not {}", classes);
  RZ_CONFIG_CHECK(width1 >= 1 && width2 >= 1 && features >= 1, "widths {}, {} and features {} must be at least 1", width1, width2,
                  features);
}

Tensor noise_embedding(const Tensor& noise_B, int64_t width, DType dtype) {
  RZ_CHECK(noise_B.defined() && noise_B.rank() == 1 && is_floating(noise_B.dtype()), "noise levels must be floating-point [B], not {}",
           noise_B.defined() ? noise_B.str() : "none");
  RZ_CHECK(width >= 2 && width % 2 == 0, "a noise embedding's width must be even, not {}", width);
  autograd::NoGrad no_grad;
  const int64_t half = width / 2;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < half; ++i) frequencies.push_back(std::pow(kSlowest, -static_cast<double>(i) / static_cast<double>(half)));
  // Angles reach 1000: in 16 bits they would be noise themselves.
  const DType compute = compute_dtype(noise_B.dtype());
  const Tensor angles = ops::mul(ops::unsqueeze(ops::cast(noise_B, compute), 1), ops::cast(Tensor::of({half}, frequencies), compute));
  return ops::cast(ops::concat({ops::cos(angles), ops::sin(angles)}, 1), dtype);
}

ConditionEmbedding::ConditionEmbedding(int64_t sinusoids, int64_t width, int64_t classes, nn::Init first, nn::Init second, nn::Init labels)
    : sinusoids_(sinusoids), classes_(classes), in_(sinusoids, width, true, first), out_(width, width, true, second) {
  register_module("in", in_);
  register_module("out", out_);
  if (classes == 0) return;
  labels_ = std::make_unique<nn::Embedding>(classes + 1, width, labels);
  register_module("labels", *labels_);
}

Tensor ConditionEmbedding::forward(const Tensor& noise_B, const Conditioning& conditioning) const {
  Tensor c_BD = out_.forward(ops::silu(in_.forward(noise_embedding(noise_B, sinusoids_, in_.weight().dtype()))));
  const Tensor& labels = conditioning.labels;
  if (!labels_) {
    RZ_CHECK(!labels.defined(), "labels {} for a network without classes", labels.str());
    return ops::silu(c_BD);
  }
  RZ_CHECK(!labels.defined() || labels.shape() == noise_B.shape(), "labels {} do not fit noise levels {}", labels.str(), noise_B.str());
  const Tensor ids = labels.defined() ? labels : constant_labels(noise_B.size(0), static_cast<int32_t>(classes_));
  return ops::silu(ops::add(c_BD, labels_->forward(ids)));
}

void check_images(const char* network, const ImageShape& shape, const Tensor& x_BHWC, const Tensor& noise_B) {
  RZ_CHECK(x_BHWC.rank() == 4 && x_BHWC.size(1) == shape.height && x_BHWC.size(2) == shape.width && x_BHWC.size(3) == shape.channels,
           "the {} takes images [B, {}, {}, {}], not {}", network, shape.height, shape.width, shape.channels, x_BHWC.str());
  RZ_CHECK(!noise_B.defined() || noise_B.shape() == Shape{x_BHWC.size(0)}, "noise levels {} do not fit images {}", noise_B.str(),
           x_BHWC.str());
}

Tensor grid_positions(int64_t rows, int64_t columns, int64_t width) {
  RZ_CHECK(rows >= 1 && columns >= 1 && width >= 4 && width % 4 == 0, "there are no positions of width {} on a {} x {} grid", width, rows,
           columns);
  const int64_t quarter = width / 4;
  std::vector<float> values;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      for (const int64_t position : {i, j})
        for (const bool cosine : {false, true})
          for (int64_t k = 0; k < quarter; ++k) {
            const double angle = static_cast<double>(position) * std::pow(kSlowest, -static_cast<double>(k) / static_cast<double>(quarter));
            values.push_back(static_cast<float>(cosine ? std::cos(angle) : std::sin(angle)));
          }
  return Tensor::of({rows * columns, width}, values, "grid positions");
}

}  // namespace rz::models::diffusion
