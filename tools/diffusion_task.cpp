#include "tools/diffusion_task.h"

#include <limits>

#include "models/diffusion/state.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/trace.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/ops.h"

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

DiffusionTask::DiffusionTask(const ringzero::Job& job, models::ImageDataset dataset)
    : ImageTask(job, std::move(dataset)),
      network_(make_network(job, info_)),
      objective_(make_process(job, info_)),
      label_drop_(job.diffusion().label_drop()) {
  const std::string& pairs = job.diffusion().pairs();
  if (!pairs.empty()) pairs_.emplace(pairs, info_.size, info_.classes(), job.images().validation_fraction());
}

uint64_t DiffusionTask::data_digest() const {
  const uint64_t images = ImageTask::data_digest();
  return pairs_ && !dry_run() ? images * 31 + pairs_->digest() : images;
}

diffusion::LossResult DiffusionTask::loss(const models::PairBatch& batch, double label_drop, const models::SampleKey& key, double scale) {
  diffusion::Conditioning conditioning;
  if (network_->classes() > 0) {
    const CategoryScope category(Category::input);
    conditioning.labels = diffusion::drop_labels(batch.data.labels, label_drop, network_->null_label(), key);
  }
  return objective_.loss(bind_network(*network_, key), batch.data.images, conditioning, key, scale, batch.noise);
}

optim::MicroLoss DiffusionTask::train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) {
  const auto batch = [&]() -> models::PairBatch {
    if (!pairs_) return {train_batch(step, samples), {}};
    const trace::Scope activity(trace::Activity::data);
    return pairs_->train_batch(seed_, step, samples.begin, samples.count());
  }();
  auto result = loss(batch, label_drop_, train_key(step, samples), 1.0 / static_cast<double>(global_samples));
  return {std::move(result.loss), result.sum, samples.count()};
}

EvaluationSum DiffusionTask::evaluate(models::SampleRange samples) {
  const autograd::NoGrad no_grad;
  const bool was_training = network_->training();
  network_->train(false);
  const auto batch = pairs_ ? pairs_->validation_batch(samples.begin, samples.count()) : models::PairBatch{validation_batch(samples), {}};
  const auto result = loss(batch, 0, validation_key(samples), 1.0);
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
