// A task is what a job trains: a model and its data, on one device. The trainer knows tasks only through this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/data/batch.h"
#include "optim/trainer.h"
#include "proto/job.pb.h"

namespace rz::tools {

// A sum over items (tokens) and how many there were, on this rank.
struct EvaluationSum {
  double loss_sum = 0;
  int64_t items = 0;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual nn::Module& module() = 0;

  // Loss of global samples [samples.begin, samples.end) of the batch of `step`, divided by the items of all `global_samples`.
  virtual optim::MicroLoss train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) = 0;
  // Items (tokens, images) in a sample, and what they and the loss are called.
  virtual int64_t items_per_sample() const = 0;
  virtual const char* item_name() const { return "tokens"; }
  virtual const char* loss_unit() const { return "nats per token"; }

  // How many held-out samples there are, and the loss of some of them, in one forward (nothing is recorded).
  virtual int64_t evaluation_samples() const = 0;
  virtual EvaluationSum evaluate(models::SampleRange samples) = 0;

  // Whether end_step() has anything to do; a step's publications are not hidden behind the next one where it has.
  virtual bool follows_losses() const { return false; }
  // After the update of a step: what all ranks' train_loss calls together mean for the next ones. COLLECTIVE.
  virtual void end_step(comm::Communicator&) {}
  // What training carries from step to step beside weights and optimizer, the same on every rank: checkpoints keep it. Always of one size.
  virtual std::vector<float> state() const { return {}; }
  virtual void restore(std::span<const float>) {}

  // Equal on ranks that hold the same data.
  virtual uint64_t data_digest() const = 0;
  // What generation needs beside the weights, as JSON, and the name under which the run directory keeps it.
  virtual std::string generation_json() const = 0;
  virtual const char* generation_file() const { return "vocabulary.json"; }
};

// Loads the data and builds the model, without memory for its weights. ConfigError for what does not fit together.
std::unique_ptr<Task> make_task(const ringzero::Job& job);
// The same for models of images; in a dry run over images without contents.
std::unique_ptr<Task> make_image_task(const ringzero::Job& job);

// Samples that a validation forward takes at once.
int64_t samples_at_once(const ringzero::Job& job);

}  // namespace rz::tools
