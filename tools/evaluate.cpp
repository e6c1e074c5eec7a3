#include "tools/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "models/diffusion/likelihood.h"
#include "models/diffusion/reflow.h"
#include "models/diffusion/variational.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/random.h"
#include "tools/agree.h"
#include "tools/atomic_file.h"
#include "tools/console.h"
#include "tools/image_metrics.h"
#include "tools/job_file.h"

namespace rz::tools {

namespace {

namespace diffusion = models::diffusion;

constexpr int64_t kImagesJudgedAtOnce = 100;
constexpr int64_t kNeighbour = 3;
constexpr double kAnchorNoise = 0.3;
constexpr int64_t kStraightnessSamples = 200, kStraightnessSteps = 20;

// The classifier and what it says of images.
struct Judge {
  diffusion::ClassifierConfig config;
  std::unique_ptr<diffusion::Classifier> model;
};

Judge load_judge(const std::string& run, const ImagesInfo& info, comm::Communicator& comm) {
  const ringzero::Job job = load_job(run + "/job.textproto");
  RZ_CONFIG_CHECK(job.has_classifier() && !job.classifier().noise_levels(), "{} trained no classifier without noise levels", run);
  check_same_images(run, info);
  Judge judge{classifier_config(job, info), nullptr};
  judge.model = std::make_unique<diffusion::Classifier>(judge.config);
  load_weights(*judge.model, job, run, comm);
  judge.model->train(false);
  return judge;
}

struct Judgement {
  Features features;
  std::vector<int32_t> classes;
};

using ImagesOf = std::function<Tensor(int64_t begin, int64_t end)>;  // f32 [end - begin, H, W, C]

// Of images [0, count), each computed on one rank. COLLECTIVE.
Judgement judge_images(const Judge& judge, int64_t count, const ImagesOf& images_of, comm::Communicator& comm) {
  const int64_t features = judge.config.features, classes = judge.config.classes;
  const autograd::NoGrad no_grad;
  const std::string all = gather_parts(comm, count, [&](int64_t begin, int64_t end) {
    std::string own;
    for (int64_t at = begin; at < end; at += kImagesJudgedAtOnce) {
      const auto out = judge.model->forward(images_of(at, std::min(end, at + kImagesJudgedAtOnce)));
      const auto f = out.features.to_vector<float>(), l = out.logits.to_vector<float>();
      for (int64_t b = 0; b < out.features.size(0); ++b) {
        own.append(reinterpret_cast<const char*>(f.data() + b * features), static_cast<size_t>(features) * sizeof(float));
        own += static_cast<char>(std::max_element(l.begin() + b * classes, l.begin() + (b + 1) * classes) - (l.begin() + b * classes));
      }
    }
    return own;
  });
  Judgement out{{{}, features}, {}};
  const size_t record = static_cast<size_t>(features) * sizeof(float) + 1;
  std::vector<float> row(static_cast<size_t>(features));
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    std::memcpy(row.data(), all.data() + i * record, record - 1);
    out.features.values.insert(out.features.values.end(), row.begin(), row.end());
    out.classes.push_back(static_cast<unsigned char>(all[(i + 1) * record - 1]));
  }
  return out;
}

ImagesOf dataset_images(const models::ImageDataset& dataset, const ImagesInfo& info, models::Split split) {
  return [&dataset, &info, split](int64_t begin, int64_t end) {
    return models::make_image_batch(dataset, {.flip = false, .padding = info.padding}, split, begin, end - begin).images;
  };
}

double agreement(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i];
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

class Yardstick {
 public:
  Yardstick(const Features& reference, int64_t count) : real_(reference.first(std::min(count, reference.count()))), gaussian_(fit_gaussian(reference)) {}

  nlohmann::ordered_json measure(const Features& features) const {
    const PrecisionRecall pr = precision_recall(real_, features, kNeighbour);
    nlohmann::ordered_json json;
    json["frechet_distance"] = frechet_distance(gaussian_, fit_gaussian(features));
    json["precision"] = pr.precision;
    json["recall"] = pr.recall;
    return json;
  }

 private:
  Features real_;  // as many as are measured: precision and recall depend on both numbers
  Gaussian gaussian_;
};

nlohmann::ordered_json mean_and_error(const std::vector<double>& values) {
  double mean = 0, square = 0;
  for (const double v : values) mean += v / static_cast<double>(values.size());
  for (const double v : values) square += (v - mean) * (v - mean);
  const auto n = static_cast<double>(values.size());
  return {{"mean", mean}, {"standard_error", n > 1 ? std::sqrt(square / (n - 1) / n) : 0.0}};
}

// On the first validation images; each rank does a part.
nlohmann::ordered_json bits_per_dimension(TrainedDiffusion& model, const models::ImageDataset& dataset, const EvaluateOptions& options,
                                          comm::Communicator& comm) {
  const int64_t count = options.likelihood;
  const diffusion::Process& p = model.process;
  const bool conditional = model.network->classes() > 0;
  const bool discrete = p.path->steps() > 1;
  diffusion::DenoiserPtr network = std::make_shared<diffusion::NetworkDenoiser>(bind_network(*model.network, {}), p.path, p.parametrization, p.vlb.has_value());
  const std::string all = gather_parts(comm, count, [&](int64_t begin, int64_t end) {
    std::vector<double> flow_bits, bound_bits;
    for (int64_t at = begin; at < end; at += options.sampling.batch) {
      const int64_t n = std::min(end, at + options.sampling.batch) - at;
      const auto batch = models::make_image_batch(dataset, {.flip = false, .padding = model.info.padding}, models::Split::validation, at, n);
      const diffusion::Conditioning conditioning = conditional ? diffusion::Conditioning{batch.labels} : diffusion::Conditioning{};
      const diffusion::SampleRows rows{options.sampling.seed, static_cast<uint64_t>(at)};
      for (const double log_p : diffusion::log_likelihood(*network, *p.path, diffusion::dequantize(batch.images, rows), conditioning, {}, rows))
        flow_bits.push_back(diffusion::bits_per_dimension(log_p, model.info.size.values()));
      if (!discrete) continue;
      const diffusion::ClampedDenoiser clamped(network, p.path);
      const auto grid = diffusion::make_grid({.kind = diffusion::GridKind::linspace}, *p.path, p.path->steps());
      const auto variance = p.vlb ? diffusion::Variance::learned : diffusion::Variance::fixed_large;
      for (const double bits : diffusion::variational_bound(clamped, *p.path, grid, variance, batch.images, conditioning, rows).total) bound_bits.push_back(bits);
    }
    std::string own;
    for (size_t i = 0; i < flow_bits.size(); ++i) {
      const std::array<double, 2> pair = {flow_bits[i], discrete ? bound_bits[i] : 0};
      own.append(reinterpret_cast<const char*>(pair.data()), sizeof(pair));
    }
    return own;
  });
  std::vector<double> flow_bits, bound_bits;
  for (int64_t i = 0; i < count; ++i) {
    std::array<double, 2> pair;
    std::memcpy(pair.data(), all.data() + static_cast<size_t>(i) * sizeof(pair), sizeof(pair));
    flow_bits.push_back(pair[0]);
    bound_bits.push_back(pair[1]);
  }
  nlohmann::ordered_json json;
  json["images"] = count;
  json["probability_flow"] = mean_and_error(flow_bits);
  if (discrete) json["variational_bound"] = mean_and_error(bound_bits);
  return json;
}

bool is_flow(const diffusion::Path& path) { return path.at(1).a == 0 && path.at(1).s == 1; }

// Of the first samples' ways from noise to data, as Euler's method goes them.
nlohmann::ordered_json straightness(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, comm::Communicator& comm) {
  const int64_t count = std::min(options.count, kStraightnessSamples);
  const auto grid = diffusion::make_grid({.kind = diffusion::GridKind::trailing}, *plan.process.path, kStraightnessSteps);
  const auto labels = sample_labels(model, options);
  const std::string all = gather_parts(comm, count, [&](int64_t begin, int64_t end) {
    std::string own;
    for (int64_t at = begin; at < end; at += options.batch) {
      const int64_t to = std::min(end, at + options.batch);
      const auto values = diffusion::straightness(*plan.denoiser, *plan.process.path, grid, start_of_samples(model, plan, options, at, to),
                                                  conditioning_of(model, labels, at, to));
      own.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
    }
    return own;
  });
  std::vector<double> values(static_cast<size_t>(count));
  std::memcpy(values.data(), all.data(), all.size());
  nlohmann::ordered_json json = mean_and_error(values);
  json["samples"] = count;
  json["steps"] = kStraightnessSteps;
  return json;
}

void print(const nlohmann::ordered_json& json) {
  fmt::print("{} samples of {} (step {}): preset {}, {} evaluations each, guidance {}\n", json["samples"].get<int64_t>(), json["run"].get<std::string>(),
             json["step"].get<int64_t>(), json["preset"].get<std::string>(), json["evaluations"].get<int64_t>(), json["guidance"].get<double>());
  fmt::print("{:<40}{:>8}{:>12}{:>9}{:>10}\n", "", "FD", "precision", "recall", "accuracy");
  const auto row = [](const std::string& what, const nlohmann::ordered_json& j) {
    fmt::print("{:<40}{:>8.2f}{:>12.3f}{:>9.3f}{:>10}\n", what, j["frechet_distance"].get<double>(), j["precision"].get<double>(),
               j["recall"].get<double>(), j.contains("class_accuracy") ? fmt::format("{:.3f}", j["class_accuracy"].get<double>()) : "");
  };
  row("samples", json["generated"]);
  row("floor: validation images", json["floor"]);
  row(fmt::format("anchor: these with noise of {}", kAnchorNoise), json["anchor"]);
  if (json.contains("straightness"))
    fmt::print("straightness (0: straight lines): {:.4f} +- {:.4f} over {} steps of {} samples\n", json["straightness"]["mean"].get<double>(),
               json["straightness"]["standard_error"].get<double>(), json["straightness"]["steps"].get<int64_t>(), json["straightness"]["samples"].get<int64_t>());
  if (!json.contains("bits_per_dimension")) return;
  const auto& bits = json["bits_per_dimension"];
  for (const char* kind : {"probability_flow", "variational_bound"})
    if (bits.contains(kind))
      fmt::print("bits per dimension, {}: {:.3f} +- {:.3f} on {} images\n", kind, bits[kind]["mean"].get<double>(), bits[kind]["standard_error"].get<double>(),
                 bits["images"].get<int64_t>());
}

}  // namespace

void evaluate_run(const EvaluateOptions& options, comm::Communicator& comm) {
  TrainedDiffusion model = load_diffusion(options.run, comm, options.sampling.guide);
  const models::ImageDataset dataset = load_images(model.job);
  const int64_t count = options.sampling.count;
  const int64_t held_out = dataset.images(models::Split::validation).count(), trained = dataset.images(models::Split::train).count();
  const int64_t floor = std::min(count, held_out), reference = std::min(options.reference, trained);
  const SamplingPlan plan = plan_sampling(model, options.sampling);
  RZ_CONFIG_CHECK(floor > kNeighbour && reference > kNeighbour, "{} samples, {} validation images, {} reference images: more than {} of each are needed",
                  count, held_out, reference, kNeighbour);
  RZ_CONFIG_CHECK(options.likelihood >= 0 && options.likelihood <= held_out, "the likelihood of {} images: there are {} validation images",
                  options.likelihood, held_out);
  const Judge judge = load_judge(options.classifier, model.info, comm);

  const Judgement real = judge_images(judge, reference, dataset_images(dataset, model.info, models::Split::train), comm);
  const Judgement validation = judge_images(judge, floor, dataset_images(dataset, model.info, models::Split::validation), comm);
  const auto clean = dataset_images(dataset, model.info, models::Split::validation);
  const Judgement noisy = judge_images(
      judge, floor,
      [&](int64_t begin, int64_t end) {
        const Tensor x = clean(begin, end);
        const Tensor z = diffusion::keyed_normal(x.shape(), {options.sampling.seed, static_cast<uint64_t>(begin)}, "evaluate:anchor", 0);
        auto values = x.to_vector<float>();
        const auto noise = z.to_vector<float>();
        for (size_t i = 0; i < values.size(); ++i) values[i] = std::clamp(values[i] + static_cast<float>(kAnchorNoise) * noise[i], -1.0F, 1.0F);
        return Tensor::of<float>(x.shape(), values);
      },
      comm);

  const auto start = std::chrono::steady_clock::now();
  const auto levels = sample_images(model, plan, options.sampling, comm);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const models::ImageSize& size = model.info.size;
  const Judgement generated = judge_images(
      judge, count,
      [&](int64_t begin, int64_t end) {
        std::vector<float> values;
        for (int64_t i = begin * size.values(); i < end * size.values(); ++i) values.push_back(static_cast<float>(levels[static_cast<size_t>(i)]) / 127.5F - 1.0F);
        return Tensor::of<float>({end - begin, size.height, size.width, size.channels}, values);
      },
      comm);

  nlohmann::ordered_json json;
  json["run"] = options.run;
  json["step"] = model.step;
  json["preset"] = plan.process.preset;
  json["method"] = diffusion::name(plan.config.method);
  json["steps"] = plan.grid.size() - 1;
  json["evaluations"] = plan.evaluations;
  json["guidance"] = options.sampling.guidance;
  json["samples"] = count;
  json["reference_images"] = reference;
  json["sampling_seconds"] = seconds;
  json["digest"] = fmt::format("{:016x}", stable_hash({reinterpret_cast<const char*>(levels.data()), levels.size()}));
  if (model.guide) json["classifier_guidance"] = options.sampling.classifier_guidance.value_or(1);
  if (is_flow(*plan.process.path)) json["straightness"] = straightness(model, plan, options.sampling, comm);
  if (options.likelihood > 0) json["bits_per_dimension"] = bits_per_dimension(model, dataset, options, comm);
  on_rank_zero(comm, "evaluation", [&] {
    const Yardstick yardstick(real.features, count);
    json["generated"] = yardstick.measure(generated.features);
    if (model.guide || (model.network->classes() > 0 && options.sampling.guidance != 0))
      json["generated"]["class_accuracy"] = agreement(generated.classes, sample_labels(model, options.sampling));
    json["floor"] = yardstick.measure(validation.features);
    const auto names = dataset.images(models::Split::validation).labels().first(static_cast<size_t>(floor));
    json["floor"]["class_accuracy"] = agreement(validation.classes, {names.begin(), names.end()});
    json["anchor"] = yardstick.measure(noisy.features);
    write_file_atomically(options.run + "/evaluation.json", json.dump(2) + "\n");
  });
  if (comm.rank() != 0) return;
  if (options.json) fmt::print("{}\n", json.dump(2));
  else print(json);
}

}  // namespace rz::tools
