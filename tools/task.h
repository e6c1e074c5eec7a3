// A task is what a job trains: a model and its data, on one device. The trainer knows tasks only through this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

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
  // Items (tokens) in a sample.
  virtual int64_t items_per_sample() const = 0;

  // How many held-out samples there are, and the loss of some of them, in one forward (nothing is recorded).
  virtual int64_t evaluation_samples() const = 0;
  virtual EvaluationSum evaluate(models::SampleRange samples) = 0;

  // Equal on ranks that hold the same data.
  virtual uint64_t data_digest() const = 0;
  // What generation needs beside the weights, as JSON; kept in the run directory.
  virtual std::string vocabulary_json() const = 0;
};

// Loads the data and builds the model, without memory for its weights. ConfigError for what does not fit together.
std::unique_ptr<Task> make_task(const ringzero::Job& job);

}  // namespace rz::tools
