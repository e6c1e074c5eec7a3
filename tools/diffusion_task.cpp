#include "tools/diffusion_task.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "models/diffusion/state.h"
#include "optim/checkpoint/agreement.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/trace.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/ops.h"
#include "tools/image_sample.h"
#include "tools/session.h"

namespace rz::tools {

namespace diffusion = models::diffusion;

ImageTask::ImageTask(const ringzero::Job& job, models::ImageDataset dataset)
    : seed_(job.seed()), dataset_(std::move(dataset)), options_(image_options(job)), info_(images_info(job, dataset_)) {}

models::ImageBatch ImageTask::train_batch(int64_t step, models::SampleRange samples) const {
  const trace::Scope activity(trace::Activity::data);
  return models::make_train_images(dataset_, options_, seed_, step, samples.begin, samples.count());
}

models::ImageBatch ImageTask::validation_batch(models::SampleRange samples) const {
  return models::make_image_batch(dataset_, options_, models::Split::validation, samples.begin, samples.count());
}

models::SampleKey ImageTask::train_key(int64_t step, models::SampleRange samples) const {
  return {seed_, static_cast<uint64_t>(step), static_cast<uint64_t>(samples.begin)};
}

models::SampleKey ImageTask::validation_key(models::SampleRange samples) const {
  return {seed_, std::numeric_limits<uint64_t>::max(), static_cast<uint64_t>(samples.begin)};
}

namespace {

std::shared_ptr<diffusion::LossAwareTime> loss_aware_times(const ringzero::Job& job, const diffusion::Process& process) {
  if (!job.diffusion().loss_aware_times()) return nullptr;
  return std::make_shared<diffusion::LossAwareTime>(process.path->steps(), job.diffusion().loss_history());
}

diffusion::Process with_times(diffusion::Process process, const std::shared_ptr<diffusion::LossAwareTime>& times) {
  if (times) process.times = times;
  return process;
}

}  // namespace

DiffusionTask::DiffusionTask(const ringzero::Job& job, models::ImageDataset dataset)
    : ImageTask(job, std::move(dataset)),
      job_(job),
      network_(make_network(job, info_)),
      aware_(loss_aware_times(job, make_process(job, info_))),
      objective_(with_times(make_process(job, info_), aware_)),
      validation_(make_process(job, info_)),
      label_drop_(job.diffusion().label_drop()) {
  const std::string& pairs = job.diffusion().pairs();
  if (!pairs.empty()) pairs_.emplace(pairs, info_.size, info_.classes(), job.images().validation_fraction());
}

uint64_t DiffusionTask::data_digest() const {
  const uint64_t images = ImageTask::data_digest();
  return pairs_ && !dry_run() ? images * 31 + pairs_->digest() : images;
}

diffusion::LossResult DiffusionTask::loss(const models::PairBatch& batch, double label_drop, const models::SampleKey& key, double scale,
                                          const diffusion::Objective& objective) {
  diffusion::Conditioning conditioning;
  if (network_->classes() > 0) {
    const CategoryScope category(Category::input);
    conditioning.labels = diffusion::drop_labels(batch.data.labels, label_drop, network_->null_label(), key);
  }
  return objective.loss(bind_network(*network_, key), batch.data.images, conditioning, key, scale, batch.noise);
}

optim::MicroLoss DiffusionTask::train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) {
  const auto batch = [&]() -> models::PairBatch {
    if (!pairs_) return {train_batch(step, samples), {}};
    const trace::Scope activity(trace::Activity::data);
    return pairs_->train_batch(seed_, step, samples.begin, samples.count());
  }();
  auto result = loss(batch, label_drop_, train_key(step, samples), 1.0 / static_cast<double>(global_samples), objective_);
  if (aware_)
    for (size_t b = 0; b < result.times.size(); ++b) seen_.push_back({samples.begin + static_cast<int64_t>(b), result.times[b], result.sample_losses[b]});
  return {std::move(result.loss), result.sum, samples.count()};
}

void DiffusionTask::end_step(comm::Communicator& comm) {
  if (!aware_) return;
  // A sample counts once: exact sums may have computed it again, and a rank with nothing else to do computes another's.
  const auto sort_and_drop_repeated = [](std::vector<Seen>& seen) {
    std::ranges::stable_sort(seen, {}, &Seen::sample);
    const auto repeated = std::ranges::unique(seen, {}, &Seen::sample);
    seen.erase(repeated.begin(), repeated.end());
  };
  sort_and_drop_repeated(seen_);
  // As many entries from every rank as the one with most has: what a dry run of any rank foresees.
  const int64_t batch = job_.training().batch();
  const auto list = micro_batches(job_);
  const int64_t most = sums_exactly(job_) ? list.rounds(comm.size()) * (list.samples(0).end - list.samples(0).begin) : (batch + comm.size() - 1) / comm.size();
  RZ_CHECK(static_cast<int64_t>(seen_.size()) <= most, "{} losses of a step on rank {} of {}, at most {} are possible", seen_.size(), comm.rank(), comm.size(), most);
  seen_.resize(static_cast<size_t>(most), Seen{.sample = -1});
  std::vector<Seen> all;
  for (const auto& bytes : optim::checkpoint::gather_strings(comm, {reinterpret_cast<const char*>(seen_.data()), seen_.size() * sizeof(Seen)})) {
    const size_t at = all.size();
    all.resize(at + bytes.size() / sizeof(Seen));
    std::memcpy(all.data() + at, bytes.data(), bytes.size());
  }
  seen_.clear();
  std::erase_if(all, [](const Seen& s) { return s.sample < 0; });
  sort_and_drop_repeated(all);  // in the order of the batch, whoever computed what
  std::vector<diffusion::LossAwareTime::Observation> observations;
  for (const Seen& s : all)
    if (std::isfinite(s.loss)) observations.push_back({s.t, s.loss});
  aware_->update(observations);
}

std::vector<float> DiffusionTask::state() const {
  if (!aware_) return {};
  const auto state = aware_->state();  // losses are float32 numbers: none is rounded
  return {state.begin(), state.end()};
}

void DiffusionTask::restore(std::span<const float> state) {
  if (aware_) aware_->restore(std::vector<double>(state.begin(), state.end()));
}

TrainedDiffusion DiffusionTask::as_trained() {
  TrainedDiffusion model;
  model.job = job_;
  model.info = info_;
  model.network = {std::shared_ptr<void>(), network_.get()};  // owns nothing
  model.process = validation_.process();
  return model;
}

ImageSampleOptions DiffusionTask::sampling_of(const ringzero::Training& options) const {
  ImageSampleOptions sampling;
  sampling.count = options.sample_count();
  sampling.seed = seed_;
  if (options.sample_steps() > 0) sampling.sampler.steps = options.sample_steps();
  return sampling;
}

void DiffusionTask::check_sampling(const ringzero::Training& options) {
  TrainedDiffusion model = as_trained();
  plan_sampling(model, sampling_of(options));
}

std::vector<uint8_t> DiffusionTask::sample(const ringzero::Training& options, comm::Communicator& comm) {
  TrainedDiffusion model = as_trained();
  const ImageSampleOptions sampling = sampling_of(options);
  const SamplingPlan plan = plan_sampling(model, sampling);
  const bool was_training = network_->training();
  network_->train(false);
  const auto restored = [&](auto result) {
    network_->train(was_training);
    return result;
  };
  try {
    return restored(sample_images(model, plan, sampling, comm));
  } catch (const NotNumbers& problem) {
    throw restored(problem);
  }
}

EvaluationSum DiffusionTask::evaluate(models::SampleRange samples) {
  const autograd::NoGrad no_grad;
  const bool was_training = network_->training();
  network_->train(false);
  const auto batch = pairs_ ? pairs_->validation_batch(samples.begin, samples.count()) : models::PairBatch{validation_batch(samples), {}};
  const auto result = loss(batch, 0, validation_key(samples), 1.0, validation_);
  network_->train(was_training);
  return {result.sum, samples.count()};
}

ClassifierTask::ClassifierTask(const ringzero::Job& job, models::ImageDataset dataset)
    : ImageTask(job, std::move(dataset)), model_(classifier_config(job, info_)) {
  if (job.classifier().noise_levels()) process_ = make_process(job, info_);
}

Tensor ClassifierTask::logits(const Tensor& images, const models::SampleKey& key) {
  const DType weights = model_.parameters().front()->value.dtype();
  if (!process_) return ops::cast(model_.forward(ops::cast(images, weights)).logits, DType::f32);
  const int64_t B = images.size(0);
  std::vector<double> a, s, levels;
  for (int64_t b = 0; b < B; ++b) {
    const double t = process_->times->draw({key.seed, key.step, key.first_sample + static_cast<uint64_t>(b)}).t;
    const diffusion::Coef c = process_->path->at(t);
    a.push_back(c.a);
    s.push_back(c.s);
    levels.push_back(diffusion::noise_input(process_->parametrization.noise, *process_->path, t));
  }
  const Tensor eps = diffusion::keyed_normal(images.shape(), {key.seed, key.first_sample}, "diffusion:noise", key.step);
  const auto column = [&](const std::vector<double>& values) { return diffusion::per_sample(values, images.shape(), DType::f32); };
  const Tensor noised = ops::add(ops::mul(column(a), images), ops::mul(column(s), eps));
  return ops::cast(model_.forward(ops::cast(noised, weights), diffusion::per_sample(levels, {B}, DType::f32)).logits, DType::f32);
}

optim::MicroLoss ClassifierTask::train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) {
  const auto batch = train_batch(step, samples);
  auto result = ops::cross_entropy(logits(batch.images, train_key(step, samples)), batch.labels,
                                   {.reduction = ops::LossReduction::sum, .scale = 1.0 / static_cast<double>(global_samples)});
  return {std::move(result.loss), result.sum, result.count};
}

EvaluationSum ClassifierTask::evaluate(models::SampleRange samples) {
  const autograd::NoGrad no_grad;
  const auto batch = validation_batch(samples);
  const auto result = ops::cross_entropy(logits(batch.images, validation_key(samples)), batch.labels, {.reduction = ops::LossReduction::sum});
  return {result.sum, result.count};
}

}  // namespace rz::tools
