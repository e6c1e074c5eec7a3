// What a training job runs on one rank, without files: task, sharded model, optimizer, trainer; a step and an evaluation.
// `train` drives it on real ranks, `plan` and `memory` in a dry run: both execute this code, so a plan cannot drift from a run.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "comm/link_model.h"
#include "optim/checkpoint/checkpoint.h"
#include "optim/plan/reading.h"
#include "optim/shard/micro_batches.h"
#include "optim/trainer.h"
#include "proto/job.pb.h"
#include "runtime/core/trace.h"
#include "tools/task.h"

namespace rz::tools {

// The tensor of a checkpoint that holds Task::state().
inline constexpr const char* kTaskState = "task.state";

std::unique_ptr<optim::Optimizer> make_optimizer(const ringzero::Optimizer& message);
// How `ranks` ranks share the job; `rank` is this one.
optim::ShardingOptions sharding_options(const ringzero::Job& job, int rank, int ranks);
// The links that the job emulates; nothing where it emulates none.
std::optional<comm::NetworkSpec> network_of(const ringzero::Job& job);

// Exact sums, and the fixed list of micro-batches that they need.
bool sums_exactly(const ringzero::Job& job);
// The smallest batch in which every rank has something to do in every micro-batch; with exact sums ranks may have none.
int64_t least_batch(const ringzero::Job& job, int ranks);
optim::MicroBatches micro_batches(const ringzero::Job& job);

// ConfigError when some rank would have nothing to do.
void check_batch(const ringzero::Job& job, int ranks);

// All ranks run the same program, job and data, or an error says who does not. COLLECTIVE.
void check_same_job(const ringzero::Job& job, const Task& task, comm::Communicator& comm);

// The job's task, made on this rank: set_compute(), and job and data are those of the other ranks. COLLECTIVE.
std::unique_ptr<Task> make_task_of_rank(const ringzero::Job& job, comm::Communicator& comm);

class Session {
 public:
  // Lays out the model and writes initial values. COLLECTIVE.
  Session(const ringzero::Job& job, std::unique_ptr<Task> task, comm::Communicator& comm);

  // Step `step` from 0 on this rank's share of the batch. COLLECTIVE.
  optim::StepResult train_step(int64_t step);
  // Mean loss over the validation data, with the average weights where they are kept. A dry run does the first two forwards;
  // all others are like them. COLLECTIVE.
  double evaluate();
  // Of weights, optimizer and task. Their data lives until the next call or step.
  std::vector<optim::checkpoint::SliceToSave> slices_to_save();
  // Runs `forwards`, which record nothing, with the weights that the run would be sampled with: the average ones where they are kept.
  // Every rank must make as many forwards. COLLECTIVE.
  void with_sampled_weights(const std::function<void()>& forwards);

  Task& task() { return *task_; }
  optim::ShardedModel& sharded() { return sharded_; }
  optim::ShardedOptimizer& optimizer() { return optimizer_; }
  optim::Trainer& trainer() { return trainer_; }
  optim::StepMeter& meter() { return meter_; }
  // What the last steps did and when; null when the job keeps no trace.
  trace::Recorder* recorder() { return recorder_ ? &*recorder_ : nullptr; }

 private:
  optim::MicroLoss exact_loss(int64_t step, int64_t round);

  const ringzero::Job& job_;
  comm::Communicator& comm_;
  std::unique_ptr<Task> task_;
  optim::ShardedModel sharded_;
  optim::ShardedOptimizer optimizer_;
  optim::Trainer trainer_;
  optim::StepMeter meter_;
  std::optional<trace::Recorder> recorder_;
  std::vector<float> task_state_;  // what slices_to_save() points to
};

}  // namespace rz::tools
