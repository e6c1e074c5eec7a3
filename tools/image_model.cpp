#include "tools/image_model.h"

#include <nlohmann/json.hpp>

#include "models/data/load_images.h"
#include "models/diffusion/dit.h"
#include "models/diffusion/reflow.h"
#include "models/diffusion/unet.h"
#include "runtime/core/rank_context.h"
#include "runtime/ops/shape.h"

namespace rz::tools {

namespace {

namespace diffusion = models::diffusion;

models::ImageDataset read_images(const ringzero::ImageData& m) {
  if (!m.folder().empty()) return models::load_png_folder(m.folder(), m.validation_fraction());
  if (!m.npy().empty()) return models::load_npy(m.npy(), m.npy_labels(), m.validation_fraction());
  return m.idx().empty() ? models::load_fashion_mnist() : models::load_fashion_mnist(m.idx());
}

models::ImageDataset outline(const ringzero::ImageData& m) {
  models::ImageSize size = models::kFashionSize;
  int64_t train = models::kFashionTrainImages, validation = models::kFashionTestImages;
  std::vector<std::string> names = models::fashion_class_names();
  std::string source = "Fashion-MNIST";
  if (!m.folder().empty() || !m.npy().empty() || !m.idx().empty()) {
    // Sizes of other data are known by reading it, outside the dry run's ledger.
    const RankContextScope scope(RankContext::make(0));
    const models::ImageDataset read = read_images(m);
    size = read.size(), names = read.class_names(), source = read.source();
    train = read.images(models::Split::train).count(), validation = read.images(models::Split::validation).count();
  }
  return {models::ImageList(size, train, source), models::ImageList(size, validation, source), names, source};
}

diffusion::ImageShape shape_of(const ImagesInfo& info) { return {info.size.height, info.size.width, info.size.channels}; }

}  // namespace

std::string ImagesInfo::json() const {
  nlohmann::ordered_json j;
  j["height"] = size.height;
  j["width"] = size.width;
  j["channels"] = size.channels;
  j["padding"] = padding;
  j["class_names"] = class_names;
  j["sigma_data"] = sigma_data;
  return j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

ImagesInfo parse_images_info(const std::string& text, const std::string& path) {
  try {
    const auto j = nlohmann::json::parse(text);
    ImagesInfo info;
    info.size = {j.at("height").get<int64_t>(), j.at("width").get<int64_t>(), j.at("channels").get<int64_t>()};
    info.padding = j.at("padding").get<int64_t>();
    info.class_names = j.at("class_names").get<std::vector<std::string>>();
    info.sigma_data = j.at("sigma_data").get<double>();
    RZ_CONFIG_CHECK(info.size.height >= 1 && info.size.width >= 1 && info.size.channels >= 1 && info.padding >= 0 && 2 * info.padding < info.size.height &&
                        !info.class_names.empty() && info.sigma_data > 0,
                    "{}: images of {} with a padding of {}, {} classes and sigma_data {} cannot be", path, info.size.str(), info.padding,
                    info.classes(), info.sigma_data);
    return info;
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(fmt::format("{}: does not describe images: {}", path, e.what()));
  }
}

bool is_diffusion(const ringzero::Job& job) { return job.has_unet() || job.has_dit(); }

models::ImageDataset load_images(const ringzero::Job& job) {
  RZ_CONFIG_CHECK(job.has_images(), "a network of images needs images; give images {{}}");
  return dry_run() ? outline(job.images()) : read_images(job.images());
}

models::ImageOptions image_options(const ringzero::Job& job) { return {job.images().flip(), job.images().padding()}; }

ImagesInfo images_info(const ringzero::Job& job, const models::ImageDataset& dataset) {
  ImagesInfo info;
  info.padding = job.images().padding();
  info.size = models::padded(dataset.size(), info.padding);
  info.class_names = dataset.class_names();
  if (job.diffusion().sigma_data() > 0) info.sigma_data = job.diffusion().sigma_data();
  else if (!dry_run()) info.sigma_data = dataset.statistics(info.padding).std;
  RZ_CONFIG_CHECK(info.sigma_data > 0, "{}: all values of the training images are equal", dataset.source());
  return info;
}

diffusion::PresetOptions preset_options(const ringzero::Diffusion& m, double sigma_data) {
  diffusion::PresetOptions o;
  const auto given = [](auto value) { return value > 0 ? std::optional(value) : std::nullopt; };
  o.timesteps = given(m.timesteps());
  o.beta_first = given(m.beta_first());
  o.beta_last = given(m.beta_last());
  o.sigma_min = given(m.sigma_min());
  o.sigma_max = given(m.sigma_max());
  o.shift = given(m.shift());
  o.sigma_data = sigma_data;
  return o;
}

diffusion::Process make_process(const ringzero::Job& job, const ImagesInfo& info) {
  auto process = diffusion::make_preset(job.diffusion().preset(), preset_options(job.diffusion(), info.sigma_data));
  return job.diffusion().distill() ? diffusion::one_step_distillation(std::move(process)) : process;
}

std::unique_ptr<diffusion::ImageNetwork> make_network(const ringzero::Job& job, const ImagesInfo& info) {
  const bool recompute = job.training().recompute() != ringzero::Training::NONE;
  const int64_t classes = job.diffusion().conditional() ? info.classes() : 0;
  const int64_t out_channels = make_process(job, info).vlb ? 2 * info.size.channels : 0;
  if (job.has_unet()) {
    const ringzero::UNet& m = job.unet();
    diffusion::UNetConfig c;
    c.image = shape_of(info);
    c.out_channels = out_channels;
    c.patch = m.patch();
    c.width = m.width();
    c.multipliers = m.multipliers_size() > 0 ? std::vector<int64_t>(m.multipliers().begin(), m.multipliers().end()) : std::vector<int64_t>{1, 2};
    c.blocks = m.blocks();
    c.attention_heights = {m.attention_heights().begin(), m.attention_heights().end()};
    c.middle_attention = m.middle_attention();
    c.head_width = m.head_width();
    c.scale_shift = m.scale_shift();
    c.dropout = m.dropout();
    c.classes = classes;
    c.norm_epsilon = m.norm_epsilon();
    c.recompute = recompute;
    return std::make_unique<diffusion::UNet>(c);
  }
  RZ_CONFIG_CHECK(job.has_dit(), "the job trains no diffusion model; give unet or dit");
  const ringzero::DiT& m = job.dit();
  diffusion::DiTConfig c;
  c.image = shape_of(info);
  c.out_channels = out_channels;
  c.patch = m.patch();
  c.layers = m.layers();
  c.width = m.width();
  c.heads = m.heads();
  c.mlp_width = m.mlp_width();
  c.dropout = m.dropout();
  c.classes = classes;
  c.norm_epsilon = m.norm_epsilon();
  c.recompute = recompute;
  return std::make_unique<diffusion::DiT>(c);
}

diffusion::ClassifierConfig classifier_config(const ringzero::Job& job, const ImagesInfo& info) {
  const ringzero::Classifier& m = job.classifier();
  return {shape_of(info), info.classes(), m.width1(), m.width2(), m.features(), m.noise_levels()};
}

diffusion::Network bind_network(diffusion::ImageNetwork& network, const models::SampleKey& key) {
  return [&network, key](const Tensor& x, const Tensor& noise_B, const diffusion::Conditioning& conditioning) {
    const DType weights = network.parameters().front()->value.dtype();
    // Labels may be there for a guide alone.
    const diffusion::Conditioning known = network.classes() > 0 ? conditioning : diffusion::Conditioning{};
    return ops::cast(network.forward(ops::cast(x, weights), noise_B, known, key), x.dtype());
  };
}

}  // namespace rz::tools
