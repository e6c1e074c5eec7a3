#include "tools/autotune.h"

#include <algorithm>
#include <chrono>

#include "optim/checkpoint/agreement.h"
#include "runtime/core/allocator.h"
#include "runtime/core/error.h"
#include "runtime/core/rank_context.h"
#include "tools/agree.h"
#include "tools/compute.h"
#include "tools/overlap/what_if.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

// The first steps warm up: caches, memory, and the links that they are fitted to.
constexpr int64_t kTrialSteps = 12;

// As the job, so far as a few steps show it.
ringzero::Job trial_of(const ringzero::Job& job) {
  ringzero::Job trial = job;
  trial.mutable_sharding()->set_bucket_mb(0);
  auto& training = *trial.mutable_training();
  training.set_steps(std::max(training.steps(), kTrialSteps));
  training.set_trace_steps(kTrialSteps);
  training.set_check_replicas(false);
  // A scale that is found by skipping steps would leave none to look at.
  auto& scaling = *training.mutable_loss_scaling();
  scaling.set_initial(std::clamp(1.0, scaling.smallest(), scaling.largest()));
  return trial;
}

RankTrace record_trial(const ringzero::Job& trial, comm::Communicator& comm) {
  auto task = make_task(trial);
  check_same_job(trial, *task, comm);
  Session session(trial, std::move(task), comm);
  for (int64_t step = 0; step < kTrialSteps; ++step) session.train_step(step);
  session.sharded().settle();
  return own_trace(*session.recorder(), comm, comm.probe(), trial);
}

TunedBucket choose(const std::vector<std::string>& packed) {
  std::vector<RankTrace> ranks;
  for (const std::string& bytes : packed) ranks.push_back(unpack_trace(bytes, fmt::format("the trial of rank {}", ranks.size())));
  Predictor predictor(recorded_run(join_traces(std::move(ranks), "the trial steps")));
  const WhatIf here{.same_machine = predictor.recorded().one_machine};
  TunedBucket tuned;
  tuned.default_step_ms = predictor.predict(here).run.timing.step_ms;
  const Prediction best = predictor.best_bucket(here).prediction;
  tuned.bucket_mb = best.bucket_mb;
  tuned.step_ms = best.run.timing.step_ms;
  return tuned;
}

}  // namespace

TunedBucket tune_bucket(const ringzero::Job& job, comm::Communicator& comm) {
  TunedBucket tuned;
  if (comm.size() == 1) return tuned;
  const auto start = std::chrono::steady_clock::now();
  check_batch(job, comm.size());
  set_compute(job, comm);
  const auto traces = optim::checkpoint::gather_strings(comm, pack_trace(record_trial(trial_of(job), comm)));
  on_rank_zero(comm, "sharding.bucket_mb: auto", [&] { tuned = choose(traces); });
  tuned.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  comm.broadcast(&tuned, sizeof tuned, DType::u8, 0, {.name = "bucket size"}).wait();
  // The run begins as if nothing had been.
  allocator::trim();
  RankContext::current()->memory().reset_peaks();
  return tuned;
}

}  // namespace rz::tools
