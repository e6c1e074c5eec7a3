#include "tools/train.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "comm/launch.h"
#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "optim/shard/micro_batches.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "tools/agree.h"
#include "tools/atomic_file.h"
#include "tools/console.h"
#include "tools/job_file.h"
#include "tools/language_task.h"
#include "tools/loss_chart.h"
#include "tools/progress.h"
#include "tools/run_directory.h"
#include "tools/run_summary.h"
#include "tools/sample.h"
#include "tools/version.h"

namespace rz::tools {

namespace {

namespace checkpoint = optim::checkpoint;
using Clock = std::chrono::steady_clock;

constexpr int64_t kTokensAtOnce = 4096;  // in a validation forward: large enough to be fast, small enough for any machine

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int threads_of(const ringzero::Job& job, const comm::Communicator& comm) {
  if (job.training().threads() > 0) return static_cast<int>(job.training().threads());
  const int here = comm::under_mpirun() ? ranks_on_this_machine() : comm.size();
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / here);
}

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

bool sums_exactly(const ringzero::Job& job) { return job.sharding().reduction() == ringzero::Sharding::EXACT; }

optim::MicroBatches micro_batches(const ringzero::Job& job) { return {job.training().batch(), std::max<int64_t>(1, job.training().micro_batch())}; }

optim::ShardingOptions sharding_options(const ringzero::Job& job, int ranks) {
  optim::ShardingOptions o;
  o.policy = optim::policy_of_stage(job.sharding().stage());
  o.precision = {dtype_of_precision(job.training().precision()), dtype_of_precision(job.sharding().reduce_dtype())};
  o.bucket_bytes = static_cast<int64_t>(job.sharding().bucket_mb() * (1 << 20));
  o.accumulation.micro_batches = job.training().accumulate();
  o.accumulation.reduce_every = job.sharding().reduce_every();
  if (job.sharding().reduction() == ringzero::Sharding::ORDERED) o.order = comm::Order::ordered;
  o.group_size = job.sharding().group_size();
  if (sums_exactly(job)) {
    o.exact_micro_batches = micro_batches(job).count();
    o.accumulation.micro_batches = micro_batches(job).rounds(ranks);
  }
  o.seed = job.seed();
  return o;
}

class Run {
 public:
  Run(const ringzero::Job& job, const TrainOptions& options, comm::Communicator& comm)
      : job_(job),
        options_(options),
        comm_(comm),
        speaker_(comm.rank() == 0),
        path_(options.out.empty() ? "runs/" + job.name() : options.out),
        task_(checked_task()),
        sharded_(task_->module(), comm, sharding_options(job, comm.size())),
        optimizer_(sharded_, make_optimizer(job.optimizer()), job.optimizer().decay_all(), job.training().ema_decay()),
        trainer_(sharded_, optimizer_, make_schedule(job.schedule(), job.training().steps()), job.training().clip_norm(),
                 loss_scaling(job.training())) {}

  void execute() {
    open();
    const auto& t = job_.training();
    const auto start = Clock::now();
    for (int64_t step = first_step_; step < t.steps(); ++step) {
      train_step(step);
      const int64_t done = step + 1;
      const bool evaluate_now = done == t.steps() || (t.evaluate_every() > 0 && done % t.evaluate_every() == 0);
      if (evaluate_now) validation_loss_ = evaluate();
      record_step(done, evaluate_now);
      if (t.save_every() > 0 && done % t.save_every() == 0 && done < t.steps()) save(done);
    }
    if (first_step_ >= t.steps()) validation_loss_ = evaluate();
    save(t.steps());
    if (progress_) progress_->finish();
    finish(seconds_since(start));
  }

 private:
  std::unique_ptr<Task> checked_task() {
    const auto& t = job_.training();
    const int64_t least = comm_.size() * t.accumulate();
    RZ_CONFIG_CHECK(sums_exactly(job_) || t.batch() >= least, "a batch of {} sequences gives some of {} ranks x {} micro-batches nothing to do; training.batch must be at least {}",
                    t.batch(), comm_.size(), t.accumulate(), least);
    RankContext::current()->set_threads(threads_of(job_, comm_));
    auto task = make_task(job_);
    check_agreement(comm_, {{"program", version_text()}, {"job", effective_text(job_)}, {"data", fmt::format("{:016x}", task->data_digest())}});
    return task;
  }

  void open() {
    auto& files = checkpoint::real_file_system();
    const std::string text = effective_text(job_);
    const std::string saved = RunDirectory::checkpoint_path(path_);
    if (options_.resume) {
      std::vector<checkpoint::SliceToLoad> slices;
      const auto kept = optimizer_.slices_to_load();
      for (const auto& s : kept) slices.push_back({s.name, DType::f32, s.full_shape, s.begin, s.end, s.data});
      const auto info = checkpoint::load(files, saved, std::nullopt, slices, comm_);
      optimizer_.finish_load(kept);
      restore_loss_scaler(info);
      first_step_ = info.step;
      if (sharded_.exact() != nullptr) sharded_.exact()->set_state(info.counters);
      RZ_CONFIG_CHECK(info.seed == job_.seed(), "{} was trained with seed {}, the job says {}", saved, info.seed, job_.seed());
      RZ_CONFIG_CHECK(first_step_ <= job_.training().steps(), "{} has done {} steps already, the job asks for {}", saved, first_step_, job_.training().steps());
      if (speaker_)
        for (const auto& note : info.notes) std::fprintf(stderr, "ringzero: %s\n", note.c_str());
      on_rank_zero(comm_, "run directory", [&] { directory_.emplace(RunDirectory::resume(path_, text, first_step_)); });
    } else {
      on_rank_zero(comm_, "run directory", [&] {
        directory_.emplace(RunDirectory::create(path_, text));
        write_file_atomically(path_ + "/vocabulary.json", task_->vocabulary_json());
      });
      checkpoint::prepare_directory(files, saved, comm_);
    }
    if (!speaker_ || options_.json) return;
    const auto& t = job_.training();
    fmt::print("{}: {} parameters, {} ranks x {} threads, stage {}, {} sequences of {} a step, {} steps{}\n", job_.name(),
               format_quantity(static_cast<double>(sharded_.payload_elements())), comm_.size(), thread_count(), job_.sharding().stage(), t.batch(),
               task_->items_per_sample(), t.steps(), first_step_ > 0 ? fmt::format(" (resumed after {})", first_step_) : "");
    std::fflush(stdout);
    progress_.emplace(first_step_, t.steps(), detect_terminal());
  }

  void restore_loss_scaler(const checkpoint::CheckpointInfo& info) {
    optim::LossScalerState state = trainer_.loss_scaler().state();
    if (const auto scale = info.scalars.find("loss_scale"); scale != info.scalars.end()) state.scale = scale->second;
    const auto read = [&](const char* name, int64_t& value) {
      if (const auto found = info.counters.find(name); found != info.counters.end()) value = found->second;
    };
    read("steps_at_loss_scale", state.good_steps);
    read("skipped_steps", state.skipped_steps);
    trainer_.loss_scaler().restore(state);
  }

  void train_step(int64_t step) {
    const auto start = Clock::now();
    const auto& t = job_.training();
    const models::SampleRange mine = models::sample_range(t.batch(), comm_.rank(), comm_.size());
    last_ = trainer_.step(step, [&](int64_t micro) {
      if (sums_exactly(job_)) return exact_loss(step, micro);
      const models::SampleRange part = models::sample_range(mine.count(), static_cast<int>(micro), static_cast<int>(t.accumulate()));
      return task_->train_loss(step, {mine.begin + part.begin, mine.begin + part.end}, t.batch());
    });
    if (t.check_replicas()) sharded_.check_replicas();
    step_seconds_ = seconds_since(start);
    training_seconds_ += step_seconds_;
    tokens_ += last_.items;
  }

  // This rank's part in a round of the fixed list of micro-batches. A rank that has none left computes one that does not count
  // where others need its shards in the order of a forward and backward; elsewhere it has nothing to do.
  optim::MicroLoss exact_loss(int64_t step, int64_t round) {
    const optim::MicroBatches list = micro_batches(job_);
    const auto index = list.at(round, comm_.rank(), comm_.size());
    if (!index && !sharded_.options().policy.parameters) return {.counts = false};
    const optim::Range samples = list.samples(index.value_or(0));
    optim::MicroLoss micro = task_->train_loss(step, {samples.begin, samples.end}, job_.training().batch());
    micro.counts = index.has_value();
    return micro;
  }

  void record_step(int64_t done, bool evaluated) {
    // A failure of rank 0's disk ends all ranks through the launcher, which names it; no collective per step is spent on it.
    if (!speaker_) return;
    nlohmann::ordered_json line;
    line["step"] = done;
    line["loss"] = last_.loss;
    line["grad_norm"] = last_.gradient_norm;
    line["lr"] = last_.learning_rate;
    line["tokens"] = last_.items;
    line["step_ms"] = step_seconds_ * 1e3;
    line["tokens_per_s"] = static_cast<double>(last_.items) / step_seconds_;
    if (scales_loss()) {
      line["loss_scale"] = last_.loss_scale;
      line["skipped"] = trainer_.loss_scaler().skipped_steps();  // so far
    }
    if (last_.repeats > 0) line["repeats"] = last_.repeats;
    if (evaluated) line["val_loss"] = validation_loss_;
    directory_->append_metrics(line);
    curve_.push_back({done, last_.loss});
    if (!progress_) return;
    progress_->step(done, last_.loss, last_.items);
    if (evaluated) progress_->line(fmt::format("step {}: validation loss {:.4f} nats per token", done, validation_loss_));
  }

  double evaluate() {
    PhaseScope phase(Phase::evaluate);
    if (optimizer_.has_average()) optimizer_.swap_average();
    int64_t samples = task_->evaluation_samples();
    if (job_.training().evaluate_sequences() > 0) samples = std::min(samples, job_.training().evaluate_sequences());
    sharded_.begin_step();
    // A fixed list of forwards, dealt round, and sums that do not depend on who did which: the loss of given weights does not
    // depend on the number of ranks.
    const optim::MicroBatches list(samples, std::max<int64_t>(1, kTokensAtOnce / task_->items_per_sample()));
    optim::FixedSum loss;
    int64_t items = 0;
    // In lockstep: with sharded parameters every forward is collective, so all ranks run as many.
    for (int64_t round = 0; round < list.rounds(comm_.size()); ++round) {
      const auto index = list.at(round, comm_.rank(), comm_.size());
      // Who has none left takes part with a sample that does not count.
      const optim::Range part = index ? list.samples(*index) : optim::Range{0, 1};
      const EvaluationSum s = task_->evaluate({part.begin, part.end});
      if (!index) continue;
      RZ_CHECK(loss.add(s.loss_sum), "the validation loss is not finite");
      items += s.items;
    }
    sharded_.end_forward_only();
    std::array<Int128, 2> global = {loss.value, items};
    optim::all_reduce_exactly(comm_, global, "validation loss");
    loss.value = global[0];
    if (optimizer_.has_average()) optimizer_.swap_average();
    return loss.to_double() / static_cast<double>(global[1]);
  }

  void save(int64_t done) {
    PhaseScope phase(Phase::save);
    checkpoint::CheckpointInfo info;
    info.step = done;
    info.stage = static_cast<int>(job_.sharding().stage());
    info.seed = job_.seed();
    info.data_cursor = static_cast<uint64_t>(done * job_.training().batch());
    info.job_text = effective_text(job_);
    const optim::LossScalerState& scaler = trainer_.loss_scaler().state();
    if (sharded_.exact() != nullptr) info.counters = sharded_.exact()->state();
    if (scales_loss()) {
      info.scalars["loss_scale"] = scaler.scale;
      info.counters["steps_at_loss_scale"] = scaler.good_steps;
    }
    // Kept in any precision: the optimizer counts the updates made.
    info.counters["skipped_steps"] = scaler.skipped_steps;
    std::vector<checkpoint::SliceToSave> slices;
    for (const auto& s : optimizer_.slices_to_save()) slices.push_back({s.name, DType::f32, s.full_shape, s.begin, s.end, s.data});
    const auto result = checkpoint::save(checkpoint::real_file_system(), RunDirectory::checkpoint_path(path_), info, slices, comm_);
    if (speaker_)
      for (const auto& note : result.notes) std::fprintf(stderr, "ringzero: %s\n", note.c_str());
  }

  void finish(double wall_seconds) {
    nlohmann::ordered_json summary;
    summary["name"] = job_.name();
    summary["ranks"] = comm_.size();
    summary["threads"] = thread_count();
    summary["stage"] = job_.sharding().stage();
    summary["precision"] = name(sharded_.options().precision.weights);
    if (scales_loss()) {
      summary["loss_scale"] = trainer_.loss_scaler().scale();
      summary["skipped_steps"] = trainer_.loss_scaler().skipped_steps();
    }
    summary["reduction"] = ringzero::Sharding::Reduction_Name(job_.sharding().reduction());
    summary["group_size"] = job_.sharding().group_size();
    summary["steps"] = job_.training().steps();
    summary["final_loss"] = last_.loss;
    summary["val_loss"] = validation_loss_;
    summary["weights_digest"] = fmt::format("{:016x}", sharded_.weights_digest());
    summary["tokens_per_s"] = training_seconds_ > 0 ? static_cast<double>(tokens_) / training_seconds_ : 0.0;
    summary["train_seconds"] = training_seconds_;
    summary["wall_seconds"] = wall_seconds;
    add_rank_summaries(summary, sharded_, comm_, job_.training().steps() - first_step_);
    on_rank_zero(comm_, "summary", [&] { directory_->write_summary(summary); });
    std::string sample;
    if (job_.has_sample() && job_.sample().tokens() > 0) sample = generate_sample();
    if (!speaker_) return;
    if (options_.json) {
      fmt::print("{}\n", summary.dump(2));
      return;
    }
    fmt::print("{}\n", draw_curve(curve_, "training loss", {60, 12, detect_terminal().utf8}));
    if (!sample.empty()) fmt::print("A sample:\n{}\n\n", sample);
    fmt::print("validation loss {:.4f}, {} tokens/s, weights {}, peak memory of rank 0 {} bytes; run in {}\n", validation_loss_,
               format_quantity(summary["tokens_per_s"].get<double>()), summary["weights_digest"].get<std::string>(),
               format_quantity(summary["peak_bytes"].get<double>()), path_);
  }

  bool scales_loss() const { return job_.training().precision() == ringzero::Training::F16; }

  std::string generate_sample() {
    auto* language = dynamic_cast<LanguageTask*>(task_.get());
    if (language == nullptr) return {};
    if (optimizer_.has_average()) optimizer_.swap_average();
    sharded_.begin_step();
    std::string text = sample_text(language->transformer(), parse_vocabulary(task_->vocabulary_json(), path_), job_.sample(), job_.seed());
    sharded_.end_forward_only();
    if (optimizer_.has_average()) optimizer_.swap_average();
    return text;
  }

  ringzero::Job job_;
  TrainOptions options_;
  comm::Communicator& comm_;
  bool speaker_;
  std::string path_;
  std::unique_ptr<Task> task_;
  optim::ShardedModel sharded_;
  optim::ShardedOptimizer optimizer_;
  optim::Trainer trainer_;

  std::optional<RunDirectory> directory_;
  std::optional<Progress> progress_;
  std::vector<CurvePoint> curve_;
  int64_t first_step_ = 0;
  int64_t tokens_ = 0;
  double training_seconds_ = 0;
  double step_seconds_ = 0;
  double validation_loss_ = 0;
  optim::StepResult last_;
};

}  // namespace

void train(const ringzero::Job& job, const TrainOptions& options, comm::Communicator& comm) {
  PhaseScope phase(Phase::init);
  Run(job, options, comm).execute();
}

}  // namespace rz::tools
