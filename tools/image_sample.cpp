#include "tools/image_sample.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "models/data/batch.h"
#include "models/data/npy.h"
#include "models/diffusion/reflow.h"
#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "runtime/autograd/engine.h"
#include "runtime/core/random.h"
#include "tools/agree.h"
#include "tools/atomic_file.h"
#include "tools/compute.h"
#include "tools/console.h"
#include "tools/job_file.h"
#include "tools/picture.h"
#include "tools/run_directory.h"

namespace rz::tools {

namespace {

namespace checkpoint = optim::checkpoint;
namespace diffusion = models::diffusion;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  RZ_CONFIG_CHECK(in.good(), "cannot read {}; is it a run directory of a diffusion model?", path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The preset that is sampled with: the trained one, or another with the options of the trained one that both have.
diffusion::Process sampling_process(const TrainedDiffusion& model, const std::string& preset) {
  const std::string& trained = model.process.preset;
  if (preset.empty() || preset == trained) return model.process;
  const auto one_of = [](const std::string& p, std::initializer_list<const char*> names) { return std::find(names.begin(), names.end(), p) != names.end(); };
  const auto both = [&](std::initializer_list<const char*> names) { return one_of(preset, names) && one_of(trained, names); };
  const diffusion::PresetOptions own = preset_options(model.job.diffusion(), model.info.sigma_data);
  diffusion::PresetOptions options{.sigma_data = own.sigma_data};
  if (both({"ddpm", "ddim", "iddpm"})) options.timesteps = own.timesteps;
  if (both({"ddpm", "ddim"}) || both({"vp_sde", "subvp_sde"})) options.beta_first = own.beta_first, options.beta_last = own.beta_last;
  return diffusion::make_preset(preset, options);
}

bool same_path(const diffusion::Path& a, const diffusion::Path& b) {
  if (a.steps() != b.steps()) return false;
  for (int k = 1; k <= 16; ++k) {
    const diffusion::Coef x = a.at(k / 16.0), y = b.at(k / 16.0);
    if (x.a != y.a || x.s != y.s) return false;
  }
  return true;
}

Tensor labels_tensor(const std::vector<int32_t>& labels, int64_t begin, int64_t end) {
  return Tensor::of<int32_t>({end - begin}, {labels.begin() + begin, labels.begin() + end}, "labels");
}

Shape batch_shape(const TrainedDiffusion& model, int64_t count) {
  const models::ImageSize& size = model.info.size;
  return {count, size.height, size.width, size.channels};
}

std::string bytes_of(const Tensor& x) {
  const auto values = x.to_vector<float>();
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

Tensor draw(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, const std::vector<int32_t>& labels,
            int64_t begin, int64_t end, const diffusion::StepHook<Tensor>& hook = {}) {
  const diffusion::SampleRows rows{options.seed, static_cast<uint64_t>(begin)};
  return diffusion::sample(*plan.denoiser, *plan.process.path, plan.grid, plan.config, start_of_samples(model, plan, options, begin, end), conditioning_of(model, labels, begin, end), rows, hook);
}

std::vector<uint8_t> levels(const Tensor& x) { return levels_of(x.to_vector<float>()); }

// Row by sample, column by moment: what the denoiser sees of the data, from the first step to the last.
Sheet denoising_strip(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options) {
  const int64_t rows = std::min(kSampleColumns, options.count);
  const auto each = static_cast<size_t>(model.info.size.values());
  std::vector<std::vector<uint8_t>> moments;
  const auto end = draw(model, plan, options, sample_labels(model, options), 0, rows, [&](const diffusion::StepView<Tensor>& view) {
    const int64_t wanted = static_cast<int64_t>(moments.size()) * (view.steps - 1) / (kSampleColumns - 1);
    if (view.step >= wanted && static_cast<int64_t>(moments.size()) < kSampleColumns - 1) moments.push_back(levels(view.x0));
  });
  moments.push_back(levels(end));
  std::vector<uint8_t> all;
  for (int64_t r = 0; r < rows; ++r)
    for (const auto& moment : moments) all.insert(all.end(), moment.begin() + r * static_cast<int64_t>(each), moment.begin() + (r + 1) * static_cast<int64_t>(each));
  return image_sheet(model.info.size, all, static_cast<int64_t>(moments.size()), model.info.padding);
}

}  // namespace

WeightNames weight_names(const ringzero::Job& job) {
  const bool averaged = job.training().ema_decay() > 0;
  return {averaged ? "average." : "model.", {"optimizer.", "task.", averaged ? "model." : "average."}};
}

int64_t load_weights(nn::Module& module, const ringzero::Job& job, const std::string& run, comm::Communicator& comm) {
  module.materialize(job.seed());
  const WeightNames names = weight_names(job);
  std::vector<checkpoint::SliceToLoad> slices;
  for (nn::Parameter* p : module.parameters())
    slices.push_back({names.prefix + p->name, DType::f32, p->shape(), 0, p->numel(), p->value.raw_data()});
  checkpoint::LoadOptions options;
  options.skip_prefixes = names.skipped;
  const auto info = checkpoint::load(checkpoint::real_file_system(), RunDirectory::checkpoint_path(run), std::nullopt, slices, comm, options);
  if (comm.rank() == 0)
    for (const auto& note : info.notes) fmt::print(stderr, "ringzero: {}\n", note);
  return info.step;
}

ImagesInfo read_images_info(const std::string& run) {
  const std::string path = run + "/" + kImagesFile;
  return parse_images_info(read_file(path), path);
}

ImagesInfo check_same_images(const std::string& run, const ImagesInfo& images) {
  ImagesInfo info = read_images_info(run);
  RZ_CONFIG_CHECK(info.size == images.size && info.classes() == images.classes(),
                  "{} was trained on images of {} in {} classes; these are {} in {}: take a classifier of the same images", run, info.size.str(), info.classes(),
                  images.size.str(), images.classes());
  return info;
}

namespace {

template <class Module>
void freeze(Module& module) {
  module.train(false);
  for (nn::Parameter* p : module.parameters()) autograd::set_requires_grad(p->value, false);
}

std::shared_ptr<const Guide> load_guide(const std::string& run, const ImagesInfo& images, comm::Communicator& comm) {
  const ringzero::Job job = load_job(run + "/job.textproto");
  RZ_CONFIG_CHECK(job.has_classifier() && job.classifier().noise_levels(), "{} trained no classifier with noise levels (classifier.noise_levels)", run);
  const ImagesInfo info = check_same_images(run, images);
  auto guide = std::make_shared<Guide>();
  guide->process = make_process(job, info);
  guide->model = std::make_unique<diffusion::Classifier>(classifier_config(job, info));
  load_weights(*guide->model, job, run, comm);
  freeze(*guide->model);
  return guide;
}

}  // namespace

TrainedDiffusion load_diffusion(const std::string& run, comm::Communicator& comm, const std::string& guide) {
  TrainedDiffusion model;
  model.job = load_job(run + "/job.textproto");
  RZ_CONFIG_CHECK(is_diffusion(model.job), "{} trained no diffusion model", run);
  set_products(model.job);
  model.info = read_images_info(run);
  model.process = make_process(model.job, model.info);
  model.network = make_network(model.job, model.info);
  model.step = load_weights(*model.network, model.job, run, comm);
  freeze(*model.network);
  if (!guide.empty()) model.guide = load_guide(guide, model.info, comm);
  return model;
}

SamplingPlan plan_sampling(TrainedDiffusion& model, const ImageSampleOptions& options) {
  RZ_CONFIG_CHECK(options.count >= 1 && options.batch >= 1, "{} samples in batches of {}: both must be at least 1", options.count, options.batch);
  const int64_t classes = model.classes();
  RZ_CONFIG_CHECK(!options.label || classes > 0, "this run is not conditional: it has no class {}", *options.label);
  RZ_CONFIG_CHECK(!options.label || (*options.label >= 0 && *options.label < classes), "class {} is not in [0, {})", *options.label, classes);
  const bool conditional = model.network->classes() > 0;
  RZ_CONFIG_CHECK(!options.classifier_guidance || model.guide, "guidance by a classifier needs one: give --guide RUN, a classifier with noise levels");
  RZ_CONFIG_CHECK(std::isfinite(options.classifier_guidance.value_or(1)), "classifier guidance of {} is not finite", *options.classifier_guidance);
  RZ_CONFIG_CHECK(options.guidance == 1 || conditional, "this run is not conditional: guidance {} is not possible", options.guidance);
  RZ_CONFIG_CHECK(options.guidance == 1 || model.job.diffusion().label_drop() > 0,
                  "this run dropped no labels (diffusion.label_drop 0): it does not know the unconditional denoiser that guidance {} needs",
                  options.guidance);
  SamplingPlan plan;
  plan.process = sampling_process(model, options.preset);
  const bool learned = model.process.vlb.has_value();
  plan.config = sampler_config(options.sampler, plan.process, learned);
  const int64_t steps = options.sampler.steps.value_or(plan.process.steps);
  plan.grid = diffusion::make_grid(grid_spec(options.sampler, plan.process), *plan.process.path, steps);
  diffusion::check_sampler(plan.config, *plan.process.path, plan.grid);
  RZ_CONFIG_CHECK(plan.config.variance != diffusion::Variance::learned || learned,
                  "variance learned needs a network that was trained with a learned range of variances (preset iddpm), not with {}", model.process.preset);
  diffusion::DenoiserPtr d =
      std::make_shared<diffusion::NetworkDenoiser>(bind_network(*model.network, {}), model.process.path, model.process.parametrization, learned);
  if (conditional) d = std::make_shared<diffusion::GuidedDenoiser>(d, options.guidance, model.network->null_label());
  diffusion::PathPtr path = model.process.path;
  const auto convert_to = [&](const diffusion::PathPtr& to) {
    if (!same_path(*path, *to)) d = std::make_shared<diffusion::ConvertedDenoiser>(d, path, to);
    path = to;
  };
  if (model.guide) {
    // Where the classifier knows the noise levels: on the path that it was trained on.
    const diffusion::Process& known = model.guide->process;
    convert_to(known.path);
    d = std::make_shared<diffusion::ClassifierGuidedDenoiser>(d, diffusion::log_likelihood_of(*model.guide->model), known.path, known.parametrization.noise,
                                                              options.classifier_guidance.value_or(1));
  }
  convert_to(plan.process.path);
  if (options.clamp.value_or(plan.process.path->steps() > 1)) d = std::make_shared<diffusion::ClampedDenoiser>(d, plan.process.path);
  plan.denoiser = d;
  plan.evaluations = diffusion::evaluations(plan.config, *plan.process.path, plan.grid) * (options.guidance == 0 || options.guidance == 1 ? 1 : 2);
  return plan;
}

std::vector<int32_t> sample_labels(const TrainedDiffusion& model, const ImageSampleOptions& options) {
  std::vector<int32_t> labels(static_cast<size_t>(options.count));
  const int64_t classes = std::max<int64_t>(1, model.classes());
  for (int64_t i = 0; i < options.count; ++i) labels[static_cast<size_t>(i)] = static_cast<int32_t>(options.label.value_or(i % classes));
  return labels;
}

diffusion::Conditioning conditioning_of(const TrainedDiffusion& model, const std::vector<int32_t>& labels, int64_t begin, int64_t end) {
  return model.classes() > 0 ? diffusion::Conditioning{labels_tensor(labels, begin, end)} : diffusion::Conditioning{};
}

Tensor start_of_samples(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, int64_t begin, int64_t end) {
  return diffusion::start_state(plan.config, *plan.process.path, plan.grid, batch_shape(model, end - begin), {options.seed, static_cast<uint64_t>(begin)});
}

std::string gather_parts(comm::Communicator& comm, int64_t count, const std::function<std::string(int64_t, int64_t)>& part) {
  const models::SampleRange mine = models::sample_range(count, comm.rank(), comm.size());
  const std::string own = part(mine.begin, mine.end);
  std::string all;
  for (const auto& text : checkpoint::gather_strings(comm, own)) all += text;
  return all;
}

std::vector<uint8_t> sample_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, comm::Communicator& comm) {
  // As many on every rank, so that all make as many forwards: where parameters are sharded these are collective. What is too many is cut off.
  ImageSampleOptions rounded = options;
  const int64_t each = (options.count + comm.size() - 1) / comm.size();
  rounded.count = each * comm.size();
  const auto labels = sample_labels(model, rounded);
  const int64_t begin = each * comm.rank(), end = begin + each;
  std::string own;
  bool are_numbers = true;
  for (int64_t at = begin; at < end; at += options.batch) {
    const auto values = draw(model, plan, options, labels, at, std::min(end, at + options.batch)).to_vector<float>();
    are_numbers = are_numbers && std::ranges::none_of(values, [](float x) { return std::isnan(x); });
    if (!are_numbers) continue;
    const auto part = levels_of(values);
    own.append(part.begin(), part.end());
  }
  if (!are_numbers) own.clear();
  std::vector<uint8_t> images;
  for (const auto& part : checkpoint::gather_strings(comm, own)) {
    if (part.empty()) throw NotNumbers("what was drawn is not a number: the network diverges, or the sampler with it");
    images.insert(images.end(), part.begin(), part.end());
  }
  images.resize(static_cast<size_t>(options.count * model.info.size.values()));
  return images;
}

std::vector<uint8_t> interpolate_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, int64_t from, int64_t to,
                                        comm::Communicator& comm) {
  RZ_CONFIG_CHECK(from >= 0 && to >= 0, "interpolation goes between the numbers of two samples, not from {} to {}", from, to);
  RZ_CONFIG_CHECK(options.count >= 2, "interpolation shows both its ends: {} images are too few", options.count);
  RZ_CONFIG_CHECK(diffusion::is_deterministic(plan.config.method) && plan.config.eta == 0 && plan.config.churn.amount == 0,
                  "interpolation needs a deterministic sampler (--eta 0), not {} with eta {} and churn {}", diffusion::name(plan.config.method),
                  plan.config.eta, plan.config.churn.amount);
  const Tensor a = start_of_samples(model, plan, options, from, from + 1), b = start_of_samples(model, plan, options, to, to + 1);
  const int64_t classes = std::max<int64_t>(1, model.classes());
  const std::vector<int32_t> labels(static_cast<size_t>(options.count), static_cast<int32_t>(options.label.value_or(from % classes)));
  const std::string all = gather_parts(comm, options.count, [&](int64_t begin, int64_t end) {
    std::string own;
    for (int64_t i = begin; i < end; ++i) {
      // The ends are the samples themselves, to the bit.
      const Tensor x = i == 0 ? a : i + 1 == options.count ? b : diffusion::interpolate_starts(a, b, static_cast<double>(i) / static_cast<double>(options.count - 1));
      const auto image = levels(diffusion::sample(*plan.denoiser, *plan.process.path, plan.grid, plan.config, x, conditioning_of(model, labels, i, i + 1),
                                                  {options.seed, static_cast<uint64_t>(from)}));
      own.append(image.begin(), image.end());
    }
    return own;
  });
  return {all.begin(), all.end()};
}

uint64_t write_pairs(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, const std::string& folder, comm::Communicator& comm) {
  const std::vector<std::string> names = {"noise.npy", "images.npy", "labels.npy"};
  on_rank_zero(comm, "pairs", [&] {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    RZ_CONFIG_CHECK(!error, "{}: cannot be made: {}", folder, error.message());
    for (const auto& name : names) RZ_CONFIG_CHECK(!std::filesystem::exists(folder + "/" + name), "{} holds {} already; name a new folder", folder, name);
  });
  diffusion::Process process = plan.process;
  process.sampler = plan.config;
  const auto labels = sample_labels(model, options);
  const auto row = static_cast<size_t>(model.info.size.values()) * sizeof(float);
  std::string noise, images;
  // In blocks, so that only rank 0 ever holds all.
  const int64_t block = options.batch * comm.size();
  for (int64_t first = 0; first < options.count; first += block) {
    const int64_t count = std::min(block, options.count - first);
    const std::string part = gather_parts(comm, count, [&](int64_t begin, int64_t end) {
      std::string own;
      if (begin == end) return own;
      const auto pairs = diffusion::reflow_pairs(*plan.denoiser, process, plan.grid, batch_shape(model, end - begin), conditioning_of(model, labels, first + begin, first + end),
                                                 {options.seed, static_cast<uint64_t>(first + begin)});
      const std::string x = bytes_of(pairs.noise), y = bytes_of(pairs.data);
      for (size_t b = 0; b < static_cast<size_t>(end - begin); ++b) own.append(x, b * row, row).append(y, b * row, row);
      return own;
    });
    if (comm.rank() != 0) continue;
    for (size_t b = 0; b < static_cast<size_t>(count); ++b) noise.append(part, 2 * b * row, row), images.append(part, (2 * b + 1) * row, row);
  }
  uint64_t digest = 0;
  on_rank_zero(comm, "pairs", [&] {
    const models::ImageSize& size = model.info.size;
    const std::vector<int64_t> shape = {options.count, size.height, size.width, size.channels};
    digest = stable_hash(noise) * 31 + stable_hash(images);
    const std::string_view label_bytes(reinterpret_cast<const char*>(labels.data()), labels.size() * sizeof(int32_t));
    write_file_atomically(folder + "/" + names[0], models::npy_header("<f4", shape) + noise);
    write_file_atomically(folder + "/" + names[1], models::npy_header("<f4", shape) + images);
    write_file_atomically(folder + "/" + names[2], models::npy_header("<i4", {{options.count}}).append(label_bytes));
    const nlohmann::ordered_json json = {{"run_name", model.job.name()}, {"step", model.step},          {"preset", plan.process.preset},
                                         {"method", diffusion::name(plan.config.method)}, {"steps", plan.grid.size() - 1}, {"guidance", options.guidance},
                                         {"seed", options.seed},         {"pairs", options.count},      {"digest", fmt::format("{:016x}", digest)}};
    write_file_atomically(folder + "/pairs.json", json.dump(2) + "\n");
  });
  return digest;
}

void sample_images_command(const ImageSampleCommand& command, comm::Communicator& comm) {
  RZ_CONFIG_CHECK(command.pairs.empty() || (command.grid.empty() && command.strip.empty() && command.interpolate.empty()),
                  "--pairs writes arrays; draw --grid, --strip or --interpolate in another call");
  RZ_CONFIG_CHECK(command.interpolate.empty() || (command.interpolate.size() == 2 && command.strip.empty()),
                  "--interpolate takes the numbers of two samples, A,B, and no --strip");
  TrainedDiffusion model = load_diffusion(command.run, comm, command.options.guide);
  const SamplingPlan plan = plan_sampling(model, command.options);
  const auto start = std::chrono::steady_clock::now();
  uint64_t digest = 0;
  if (!command.pairs.empty()) {
    digest = write_pairs(model, plan, command.options, command.pairs, comm);
  } else {
    const auto images = command.interpolate.empty() ? sample_images(model, plan, command.options, comm)
                                                    : interpolate_images(model, plan, command.options, command.interpolate[0], command.interpolate[1], comm);
    digest = stable_hash({reinterpret_cast<const char*>(images.data()), images.size()});
    on_rank_zero(comm, "pictures", [&] {
      const auto write = [](const std::string& path, const Sheet& sheet) { write_file_atomically(path, png_of(sheet.size, sheet.pixels)); };
      if (!command.grid.empty()) write(command.grid, image_sheet(model.info.size, images, kSampleColumns, model.info.padding));
      if (!command.strip.empty()) write(command.strip, denoising_strip(model, plan, command.options));
    });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (comm.rank() != 0) return;
  nlohmann::ordered_json json;
  json["run"] = command.run;
  json["step"] = model.step;
  json["trained_preset"] = model.process.preset;
  json["preset"] = plan.process.preset;
  json["method"] = diffusion::name(plan.config.method);
  json["steps"] = plan.grid.size() - 1;
  json["eta"] = plan.config.eta;
  json["guidance"] = command.options.guidance;
  if (model.guide) json["classifier_guidance"] = command.options.classifier_guidance.value_or(1);
  json["samples"] = command.options.count;
  json["evaluations"] = plan.evaluations;
  json["seconds"] = seconds;
  json["digest"] = fmt::format("{:016x}", digest);
  if (command.json) return fmt::print("{}\n", json.dump(2));
  fmt::print("{} images of {} in {:.1f} s: preset {}, {}, {} steps, {} evaluations each, guidance {}; digest {}\n", command.options.count,
             model.info.size.str(), seconds, plan.process.preset, diffusion::name(plan.config.method), plan.grid.size() - 1, plan.evaluations,
             command.options.guidance, json["digest"].get<std::string>());
}

}  // namespace rz::tools
