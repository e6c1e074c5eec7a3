#include "tools/session.h"

#include <algorithm>
#include <array>

#include "models/data/batch.h"
#include "optim/shard/micro_batches.h"
#include "runtime/core/rank_context.h"
#include "tools/agree.h"
#include "tools/compute.h"
#include "tools/job_file.h"
#include "tools/version.h"

namespace rz::tools {

namespace {

constexpr int64_t kTokensAtOnce = 4096;  // in a validation forward: large enough to be fast, small enough for any machine

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

DType dtype_of_precision(ringzero::Training::Precision precision) {
  switch (precision) {
    case ringzero::Training::BF16: return DType::bf16;
    case ringzero::Training::F16: return DType::f16;
    case ringzero::Training::F32: break;
  }
  return DType::f32;
}

optim::LossScaling loss_scaling(const ringzero::Training& t) {
  const auto& m = t.loss_scaling();
  optim::LossScaling s;
  s.enabled = t.precision() == ringzero::Training::F16;
  s.initial = m.initial();
  s.growth = m.growth();
  s.backoff = m.backoff();
  s.growth_interval = m.growth_interval();
  s.smallest = m.smallest();
  s.largest = m.largest();
  return s;
}

}  // namespace

bool sums_exactly(const ringzero::Job& job) { return job.sharding().reduction() == ringzero::Sharding::EXACT; }
int64_t least_batch(const ringzero::Job& job, int ranks) { return sums_exactly(job) ? 1 : ranks * job.training().accumulate(); }
optim::MicroBatches micro_batches(const ringzero::Job& job) { return {job.training().batch(), std::max<int64_t>(1, job.training().micro_batch())}; }

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

optim::ShardingOptions sharding_options(const ringzero::Job& job, int rank, int ranks) {
  optim::ShardingOptions o;
  o.policy = optim::policy_of_stage(job.sharding().stage());
  o.precision = {dtype_of_precision(job.training().precision()), dtype_of_precision(job.sharding().reduce_dtype())};
  RZ_CHECK(job.sharding().bucket_mb() >= 0, "a session with buckets of {} MiB: auto is chosen before (autotune.h)", job.sharding().bucket_mb());
  o.bucket_bytes = static_cast<int64_t>(job.sharding().bucket_mb() * (1 << 20));
  o.accumulation.micro_batches = job.training().accumulate();
  o.accumulation.reduce_every = job.sharding().reduce_every();
  if (job.sharding().reduction() == ringzero::Sharding::ORDERED) o.order = comm::Order::ordered;
  o.group_size = job.sharding().group_size();
  if (sums_exactly(job)) {
    o.exact_micro_batches = micro_batches(job).count();
    o.accumulation.micro_batches = micro_batches(job).rounds(ranks);
  }
  o.overlap = job.sharding().overlap();
  o.prefetch = static_cast<int>(job.sharding().prefetch());
  o.prefetch_bytes = static_cast<int64_t>(job.sharding().prefetch_mb() * (1 << 20));
  o.seed = job.seed();
  o.experiment.late_bucket = job.experiment().late_bucket();
  // A dry run has no time to lose.
  if (job.experiment().slow_rank() == rank && !dry_run()) o.experiment.slow_factor = job.experiment().slow_factor();
  return o;
}

std::optional<comm::NetworkSpec> network_of(const ringzero::Job& job) {
  const auto& c = job.communication();
  if (c.link().empty() && c.inter_node_link().empty()) return std::nullopt;
  comm::NetworkSpec network = comm::parse_network(c.link(), c.inter_node_link(), c.nodes());
  network.seed = job.seed();
  return network;
}

void check_batch(const ringzero::Job& job, int ranks) {
  const auto& t = job.training();
  const int64_t least = least_batch(job, ranks);
  RZ_CONFIG_CHECK(t.batch() >= least, "a batch of {} sequences gives some of {} ranks x {} micro-batches nothing to do; training.batch must be at least {}",
                  t.batch(), ranks, t.accumulate(), least);
}

void check_same_job(const ringzero::Job& job, const Task& task, comm::Communicator& comm) {
  check_agreement(comm, {{"program", build_text()},
                         {"way to multiply matrices (training.products)", products_name()},
                         {"job", effective_text(job)},
                         {"data", fmt::format("{:016x}", task.data_digest())}});
}

std::unique_ptr<Task> make_task_of_rank(const ringzero::Job& job, comm::Communicator& comm) {
  check_batch(job, comm.size());
  set_compute(job, comm);
  auto task = make_task(job);
  check_same_job(job, *task, comm);
  return task;
}

Session::Session(const ringzero::Job& job, std::unique_ptr<Task> task, comm::Communicator& comm)
    : job_(job),
      comm_(comm),
      task_(std::move(task)),
      sharded_(task_->module(), comm, sharding_options(job, comm.rank(), comm.size())),
      optimizer_(sharded_, make_optimizer(job.optimizer()), job.optimizer().decay_all(), job.training().ema_decay()),
      trainer_(sharded_, optimizer_, make_schedule(job.schedule(), job.training().steps()), job.training().clip_norm(),
               loss_scaling(job.training())),
      meter_(sharded_) {
  if (job.training().trace_steps() > 0)
    recorder_.emplace(RankContext::current()->shared_memory(), static_cast<size_t>(job.training().trace_steps()));
}

optim::StepResult Session::train_step(int64_t step) {
  const auto& t = job_.training();
  const models::SampleRange mine = models::sample_range(t.batch(), comm_.rank(), comm_.size());
  meter_.begin_step();
  const trace::Attach attach(recorder_ ? &*recorder_ : nullptr);
  if (recorder_) recorder_->begin_step(step);
  const auto result = trainer_.step(step, [&](int64_t micro) {
    if (sums_exactly(job_)) return exact_loss(step, micro);
    const models::SampleRange part = models::sample_range(mine.count(), static_cast<int>(micro), static_cast<int>(t.accumulate()));
    return task_->train_loss(step, {mine.begin + part.begin, mine.begin + part.end}, t.batch());
  });
  if (recorder_) recorder_->end_step();
  meter_.end_step();
  if (task_->follows_losses()) {
    const optim::StepMeter::Pause pause(meter_);
    task_->end_step(comm_);
  }
  if (t.check_replicas()) {
    const optim::StepMeter::Pause pause(meter_);
    sharded_.check_replicas();
  }
  return result;
}

// This rank's part in a round of the fixed list of micro-batches. A rank that has none left computes one that does not count
// where others need its shards in the order of a forward and backward; elsewhere it has nothing to do.
optim::MicroLoss Session::exact_loss(int64_t step, int64_t round) {
  const optim::MicroBatches list = micro_batches(job_);
  const auto index = list.at(round, comm_.rank(), comm_.size());
  if (!index && !sharded_.options().policy.parameters) return {.counts = false};
  const optim::Range samples = list.samples(index.value_or(0));
  optim::MicroLoss micro = task_->train_loss(step, {samples.begin, samples.end}, job_.training().batch());
  micro.counts = index.has_value();
  return micro;
}

void Session::with_sampled_weights(const std::function<void()>& forwards) {
  const optim::StepMeter::Pause pause(meter_);
  PhaseScope phase(Phase::evaluate);
  if (optimizer_.has_average()) optimizer_.swap_average();
  sharded_.begin_step();
  forwards();
  sharded_.end_forward_only();
  if (optimizer_.has_average()) optimizer_.swap_average();
  sharded_.settle();  // that publication is not a step's
}

double Session::evaluate() {
  int64_t samples = task_->evaluation_samples();
  if (job_.training().evaluate_sequences() > 0) samples = std::min(samples, job_.training().evaluate_sequences());
  // A fixed list of forwards, dealt round, and sums that do not depend on who did which: the loss of given weights does not
  // depend on the number of ranks.
  const optim::MicroBatches list(samples, samples_at_once(job_));
  optim::FixedSum loss;
  int64_t items = 0;
  // In lockstep: with sharded parameters every forward is collective, so all ranks run as many.
  std::array<Int128, 2> global{};
  with_sampled_weights([&] {
    for (int64_t round = 0; round < list.rounds(comm_.size()); ++round) {
      if (dry_run() && round == 2) break;
      const auto index = list.at(round, comm_.rank(), comm_.size());
      // Who has none left takes part with a sample that does not count.
      const optim::Range part = index ? list.samples(*index) : optim::Range{0, 1};
      const EvaluationSum s = task_->evaluate({part.begin, part.end});
      if (!index) continue;
      RZ_CHECK(loss.add(s.loss_sum), "the validation loss is not finite");
      items += s.items;
    }
    global = {loss.value, items};
    optim::all_reduce_exactly(comm_, global, "validation loss");
  });
  loss.value = global[0];
  return loss.to_double() / static_cast<double>(global[1]);
}

std::vector<optim::checkpoint::SliceToSave> Session::slices_to_save() {
  std::vector<optim::checkpoint::SliceToSave> slices;
  for (const auto& s : optimizer_.slices_to_save()) slices.push_back({s.name, DType::f32, s.full_shape, s.begin, s.end, s.data});
  task_state_ = task_->state();
  const auto count = static_cast<int64_t>(task_state_.size());
  // Every rank holds the same: rank 0 writes.
  if (count > 0) slices.push_back({kTaskState, DType::f32, {count}, 0, comm_.rank() == 0 ? count : 0, task_state_.data()});
  return slices;
}

}  // namespace rz::tools
