#include "tools/session.h"

#include <algorithm>
#include <array>
#include <thread>

#include "comm/launch.h"
#include "models/data/batch.h"
#include "runtime/core/rank_context.h"
#include "tools/agree.h"
#include "tools/console.h"
#include "tools/job_file.h"
#include "tools/version.h"

namespace rz::tools {

namespace {

constexpr int64_t kTokensAtOnce = 4096;  // in a validation forward: large enough to be fast, small enough for any machine


std::unique_ptr<optim::Optimizer> make_optimizer(const ringzero::Optimizer& message) {
  if (message.has_sgd()) {
    const auto& m = message.sgd();
    return optim::make_sgd({m.momentum(), m.nesterov(), m.weight_decay()});
  }
  if (message.has_adam()) {
    const auto& m = message.adam();
    return optim::make_adam({m.beta1(), m.beta2(), m.epsilon(), m.weight_decay(), false});
  }
  const auto& m = message.adamw();
  return optim::make_adam({m.beta1(), m.beta2(), m.epsilon(), m.weight_decay(), true});
}

optim::Schedule make_schedule(const ringzero::Schedule& m, int64_t steps) {
  optim::Schedule s;
  s.kind = m.kind() == ringzero::Schedule::CONSTANT ? optim::Schedule::Kind::constant
           : m.kind() == ringzero::Schedule::LINEAR ? optim::Schedule::Kind::linear
                                                    : optim::Schedule::Kind::cosine;
  s.learning_rate = m.learning_rate();
  s.final_learning_rate = m.final_learning_rate();
  s.warmup_steps = m.warmup_steps();
  s.total_steps = steps;
  return s;
}

optim::ShardingOptions sharding_options(const ringzero::Job& job) {
  optim::ShardingOptions o;
  o.policy = optim::policy_of_stage(job.sharding().stage());
  o.bucket_bytes = static_cast<int64_t>(job.sharding().bucket_mb() * (1 << 20));
  o.accumulation.micro_batches = job.training().accumulate();
  o.seed = job.seed();
  return o;
}

}  // namespace

int threads_of(const ringzero::Job& job, const comm::Communicator& comm) {
  if (job.training().threads() > 0) return static_cast<int>(job.training().threads());
  const int here = comm::under_mpirun() ? ranks_on_this_machine() : comm.size();
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / here);
}

void check_batch(const ringzero::Job& job, int ranks) {
  const auto& t = job.training();
  const int64_t least = ranks * t.accumulate();
  RZ_CONFIG_CHECK(t.batch() >= least, "a batch of {} sequences gives some of {} ranks x {} micro-batches nothing to do; training.batch must be at least {}",
                  t.batch(), ranks, t.accumulate(), least);
}

void check_same_job(const ringzero::Job& job, const Task& task, comm::Communicator& comm) {
  check_agreement(comm, {{"program", version_text()}, {"job", effective_text(job)}, {"data", fmt::format("{:016x}", task.data_digest())}});
}

Session::Session(const ringzero::Job& job, std::unique_ptr<Task> task, comm::Communicator& comm)
    : job_(job),
      comm_(comm),
      task_(std::move(task)),
      sharded_(task_->module(), comm, sharding_options(job)),
      optimizer_(sharded_, make_optimizer(job.optimizer()), job.optimizer().decay_all(), job.training().ema_decay()),
      trainer_(sharded_, optimizer_, make_schedule(job.schedule(), job.training().steps()), job.training().clip_norm()),
      meter_(sharded_) {}

optim::StepResult Session::train_step(int64_t step) {
  const auto& t = job_.training();
  const models::SampleRange mine = models::sample_range(t.batch(), comm_.rank(), comm_.size());
  meter_.begin();
  const auto result = trainer_.step(step, [&](int64_t micro) {
    const models::SampleRange part = models::sample_range(mine.count(), static_cast<int>(micro), static_cast<int>(t.accumulate()));
    return task_->train_loss(step, {mine.begin + part.begin, mine.begin + part.end}, t.batch());
  });
  meter_.end();
  if (t.check_replicas()) sharded_.check_replicas();
  return result;
}

double Session::evaluate() {
  PhaseScope phase(Phase::evaluate);
  if (optimizer_.has_average()) optimizer_.swap_average();
  int64_t samples = task_->evaluation_samples();
  if (job_.training().evaluate_sequences() > 0) samples = std::min(samples, job_.training().evaluate_sequences());
  sharded_.begin_step();
  const auto mine = models::sample_range(samples, comm_.rank(), comm_.size());
  const int64_t largest_share = models::sample_range(samples, 0, comm_.size()).count();
  const int64_t at_once = std::max<int64_t>(1, kTokensAtOnce / task_->items_per_sample());
  EvaluationSum sum;
  // In lockstep: with sharded parameters every forward is collective, so all ranks run as many.
  int64_t forwards = 0;
  for (int64_t at = 0; at < largest_share; at += at_once) {
    if (dry_run() && ++forwards > 2) break;
    const models::SampleRange part{std::min(mine.begin + at, mine.end), std::min(mine.begin + at + at_once, mine.end)};
    const bool spare = part.count() == 0;  // a smaller share is done: take part with a sample that does not count
    const EvaluationSum s = task_->evaluate(spare ? models::SampleRange{0, 1} : part);
    if (spare) continue;
    sum.loss_sum += s.loss_sum;
    sum.items += s.items;
  }
  sharded_.end_forward_only();
  std::array<double, 2> global = {sum.loss_sum, static_cast<double>(sum.items)};
  sharded_.reduce_scalars(global);
  if (optimizer_.has_average()) optimizer_.swap_average();
  return global[0] / global[1];
}

std::vector<optim::checkpoint::SliceToSave> Session::slices_to_save() const {
  std::vector<optim::checkpoint::SliceToSave> slices;
  for (const auto& s : optimizer_.slices_to_save()) slices.push_back({s.name, DType::f32, s.full_shape, s.begin, s.end, s.data});
  return slices;
}

}  // namespace rz::tools
