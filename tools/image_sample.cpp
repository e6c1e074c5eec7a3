#include "tools/image_sample.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "models/data/batch.h"
#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "runtime/autograd/engine.h"
#include "runtime/core/random.h"
#include "tools/agree.h"
#include "tools/atomic_file.h"
#include "tools/console.h"
#include "tools/job_file.h"
#include "tools/picture.h"
#include "tools/run_directory.h"

namespace rz::tools {

namespace {

namespace checkpoint = optim::checkpoint;
namespace diffusion = models::diffusion;

constexpr int64_t kColumns = 10;

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

diffusion::Conditioning conditioning_of(const TrainedDiffusion& model, const std::vector<int32_t>& labels, int64_t begin, int64_t end) {
  return model.network->classes() > 0 ? diffusion::Conditioning{labels_tensor(labels, begin, end)} : diffusion::Conditioning{};
}

Tensor draw(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, const std::vector<int32_t>& labels,
            int64_t begin, int64_t end, const diffusion::StepHook<Tensor>& hook = {}) {
  const diffusion::SampleRows rows{options.seed, static_cast<uint64_t>(begin)};
  const models::ImageSize& size = model.info.size;
  Tensor x = diffusion::start_state(plan.config, *plan.process.path, plan.grid, {end - begin, size.height, size.width, size.channels}, rows);
  return diffusion::sample(*plan.denoiser, *plan.process.path, plan.grid, plan.config, x, conditioning_of(model, labels, begin, end), rows, hook);
}

std::vector<uint8_t> levels(const Tensor& x) { return levels_of(x.to_vector<float>()); }

// Row by sample, column by moment: what the denoiser sees of the data, from the first step to the last.
Sheet denoising_strip(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options) {
  const int64_t rows = std::min(kColumns, options.count);
  const auto each = static_cast<size_t>(model.info.size.values());
  std::vector<std::vector<uint8_t>> moments;
  const auto end = draw(model, plan, options, sample_labels(model, options), 0, rows, [&](const diffusion::StepView<Tensor>& view) {
    const int64_t wanted = static_cast<int64_t>(moments.size()) * (view.steps - 1) / (kColumns - 1);
    if (view.step >= wanted && static_cast<int64_t>(moments.size()) < kColumns - 1) moments.push_back(levels(view.x0));
  });
  moments.push_back(levels(end));
  std::vector<uint8_t> all;
  for (int64_t r = 0; r < rows; ++r)
    for (const auto& moment : moments) all.insert(all.end(), moment.begin() + r * static_cast<int64_t>(each), moment.begin() + (r + 1) * static_cast<int64_t>(each));
  return image_sheet(model.info.size, all, static_cast<int64_t>(moments.size()), model.info.padding);
}

}  // namespace

int64_t load_weights(nn::Module& module, const ringzero::Job& job, const std::string& run, comm::Communicator& comm) {
  module.materialize(job.seed());
  const bool averaged = job.training().ema_decay() > 0;
  std::vector<checkpoint::SliceToLoad> slices;
  for (nn::Parameter* p : module.parameters())
    slices.push_back({(averaged ? "average." : "model.") + p->name, DType::f32, p->shape(), 0, p->numel(), p->value.raw_data()});
  checkpoint::LoadOptions options;
  options.skip_prefixes = {"optimizer.", averaged ? "model." : "average."};
  const auto info = checkpoint::load(checkpoint::real_file_system(), RunDirectory::checkpoint_path(run), std::nullopt, slices, comm, options);
  if (comm.rank() == 0)
    for (const auto& note : info.notes) fmt::print(stderr, "ringzero: {}\n", note);
  return info.step;
}

TrainedDiffusion load_diffusion(const std::string& run, comm::Communicator& comm) {
  TrainedDiffusion model;
  model.job = load_job(run + "/job.textproto");
  RZ_CONFIG_CHECK(is_diffusion(model.job), "{} trained no diffusion model", run);
  const std::string path = run + "/" + kImagesFile;
  model.info = parse_images_info(read_file(path), path);
  model.process = make_process(model.job, model.info);
  model.network = make_network(model.job, model.info);
  model.step = load_weights(*model.network, model.job, run, comm);
  model.network->train(false);
  for (nn::Parameter* p : model.network->parameters()) autograd::set_requires_grad(p->value, false);
  return model;
}

SamplingPlan plan_sampling(TrainedDiffusion& model, const ImageSampleOptions& options) {
  RZ_CONFIG_CHECK(options.count >= 1 && options.batch >= 1, "{} samples in batches of {}: both must be at least 1", options.count, options.batch);
  const int64_t classes = model.network->classes();
  RZ_CONFIG_CHECK(!options.label || classes > 0, "this run is not conditional: it has no class {}", *options.label);
  RZ_CONFIG_CHECK(!options.label || (*options.label >= 0 && *options.label < classes), "class {} is not in [0, {})", *options.label, classes);
  RZ_CONFIG_CHECK(options.guidance == 1 || classes > 0, "this run is not conditional: guidance {} is not possible", options.guidance);
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
  if (classes > 0) d = std::make_shared<diffusion::GuidedDenoiser>(d, options.guidance, model.network->null_label());
  if (!same_path(*model.process.path, *plan.process.path)) d = std::make_shared<diffusion::ConvertedDenoiser>(d, model.process.path, plan.process.path);
  if (options.clamp.value_or(plan.process.path->steps() > 1)) d = std::make_shared<diffusion::ClampedDenoiser>(d, plan.process.path);
  plan.denoiser = d;
  plan.evaluations = diffusion::evaluations(plan.config, *plan.process.path, plan.grid) * (options.guidance == 0 || options.guidance == 1 ? 1 : 2);
  return plan;
}

std::vector<int32_t> sample_labels(const TrainedDiffusion& model, const ImageSampleOptions& options) {
  std::vector<int32_t> labels(static_cast<size_t>(options.count));
  const int64_t classes = std::max<int64_t>(1, model.network->classes());
  for (int64_t i = 0; i < options.count; ++i) labels[static_cast<size_t>(i)] = static_cast<int32_t>(options.label.value_or(i % classes));
  return labels;
}

std::string gather_parts(comm::Communicator& comm, int64_t count, const std::function<std::string(int64_t, int64_t)>& part) {
  const models::SampleRange mine = models::sample_range(count, comm.rank(), comm.size());
  const std::string own = part(mine.begin, mine.end);
  std::string all;
  for (const auto& text : checkpoint::gather_strings(comm, own)) all += text;
  return all;
}

std::vector<uint8_t> sample_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, comm::Communicator& comm) {
  const auto labels = sample_labels(model, options);
  const std::string all = gather_parts(comm, options.count, [&](int64_t begin, int64_t end) {
    std::string own;
    for (int64_t at = begin; at < end; at += options.batch) {
      const auto part = levels(draw(model, plan, options, labels, at, std::min(end, at + options.batch)));
      own.append(part.begin(), part.end());
    }
    return own;
  });
  return {all.begin(), all.end()};
}

void sample_images_command(const ImageSampleCommand& command, comm::Communicator& comm) {
  TrainedDiffusion model = load_diffusion(command.run, comm);
  const SamplingPlan plan = plan_sampling(model, command.options);
  const auto start = std::chrono::steady_clock::now();
  const auto images = sample_images(model, plan, command.options, comm);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  on_rank_zero(comm, "pictures", [&] {
    const auto write = [](const std::string& path, const Sheet& sheet) { write_file_atomically(path, png_of(sheet.size, sheet.pixels)); };
    if (!command.grid.empty()) write(command.grid, image_sheet(model.info.size, images, kColumns, model.info.padding));
    if (!command.strip.empty()) write(command.strip, denoising_strip(model, plan, command.options));
  });
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
  json["samples"] = command.options.count;
  json["evaluations"] = plan.evaluations;
  json["seconds"] = seconds;
  json["digest"] = fmt::format("{:016x}", stable_hash({reinterpret_cast<const char*>(images.data()), images.size()}));
  if (command.json) return fmt::print("{}\n", json.dump(2));
  fmt::print("{} images of {} in {:.1f} s: preset {}, {}, {} steps, {} evaluations each, guidance {}; digest {}\n", command.options.count,
             model.info.size.str(), seconds, plan.process.preset, diffusion::name(plan.config.method), plan.grid.size() - 1, plan.evaluations,
             command.options.guidance, json["digest"].get<std::string>());
}

}  // namespace rz::tools
