// What jobs train on images: a diffusion model, or the classifier that measures and guides it.
#pragma once

#include <optional>

#include "models/data/image_pairs.h"
#include "models/diffusion/objective.h"
#include "tools/image_model.h"
#include "tools/image_sample.h"
#include "tools/task.h"

namespace rz::tools {

// Images and their batches: what both tasks share.
class ImageTask : public Task {
 public:
  ImageTask(const ringzero::Job& job, models::ImageDataset dataset);

  int64_t items_per_sample() const override { return 1; }
  const char* item_name() const override { return "images"; }
  int64_t evaluation_samples() const override { return dataset_.images(models::Split::validation).count(); }
  uint64_t data_digest() const override { return dry_run() ? 0 : dataset_.digest(); }
  const char* generation_file() const override { return kImagesFile; }
  std::string generation_json() const override { return info_.json(); }

 protected:
  models::ImageBatch train_batch(int64_t step, models::SampleRange samples) const;
  models::ImageBatch validation_batch(models::SampleRange samples) const;
  models::SampleKey train_key(int64_t step, models::SampleRange samples) const;
  // The same noise and times in every validation, those of a step that is never trained.
  models::SampleKey validation_key(models::SampleRange samples) const;

  uint64_t seed_;
  models::ImageDataset dataset_;
  models::ImageOptions options_;
  ImagesInfo info_;
};

// A UNet or a DiT and a process, trained on images, or on pairs of noise and image. The loss of a sample is a mean over its values.
class DiffusionTask final : public ImageTask {
 public:
  DiffusionTask(const ringzero::Job& job, models::ImageDataset dataset);

  nn::Module& module() override { return *network_; }
  optim::MicroLoss train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) override;
  EvaluationSum evaluate(models::SampleRange samples) override;
  const char* loss_unit() const override { return "per value"; }
  int64_t evaluation_samples() const override { return pairs_ ? pairs_->held_out() : ImageTask::evaluation_samples(); }
  uint64_t data_digest() const override;
  bool follows_losses() const override { return aware_ != nullptr; }
  void end_step(comm::Communicator& comm) override;
  std::vector<float> state() const override;
  void restore(std::span<const float> state) override;

  // What training draws times from, now.
  const models::diffusion::TimeDist& times() const { return *objective_.process().times; }
  const ImagesInfo& images() const { return info_; }
  // The levels of training.sample_count images as the network draws them now; guidance 1. COLLECTIVE. NotNumbers as sample_images.
  std::vector<uint8_t> sample(const ringzero::Training& options, comm::Communicator& comm);
  // ConfigError where it could not.
  void check_sampling(const ringzero::Training& options);

 private:
  TrainedDiffusion as_trained();
  ImageSampleOptions sampling_of(const ringzero::Training& options) const;
  // What a sample's loss was, for the distribution of times.
  struct Seen {
    int64_t sample = 0;
    double t = 0, loss = 0;
  };

  models::diffusion::LossResult loss(const models::PairBatch& batch, double label_drop, const models::SampleKey& key, double scale,
                                      const models::diffusion::Objective& objective);

  ringzero::Job job_;
  std::unique_ptr<models::diffusion::ImageNetwork> network_;
  std::shared_ptr<models::diffusion::LossAwareTime> aware_;  // null: times do not depend on losses
  models::diffusion::Objective objective_;
  models::diffusion::Objective validation_;  // at the preset's own times, whatever was learned of losses
  std::vector<Seen> seen_;                   // by this rank, in the current step
  double label_drop_;
  std::optional<models::ImagePairs> pairs_;
};

// Cross entropy against the images' classes; on noised images where the classifier has noise levels.
class ClassifierTask final : public ImageTask {
 public:
  ClassifierTask(const ringzero::Job& job, models::ImageDataset dataset);

  nn::Module& module() override { return model_; }
  optim::MicroLoss train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) override;
  EvaluationSum evaluate(models::SampleRange samples) override;
  const char* loss_unit() const override { return "nats per image"; }

 private:
  Tensor logits(const Tensor& images, const models::SampleKey& key);

  models::diffusion::Classifier model_;
  std::optional<models::diffusion::Process> process_;
};

}  // namespace rz::tools
