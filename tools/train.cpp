#include "tools/train.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "comm/error.h"
#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "runtime/core/host.h"
#include "runtime/core/memory_limit.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "tools/agree.h"
#include "tools/atomic_file.h"
#include "tools/autotune.h"
#include "tools/console.h"
#include "tools/diffusion_task.h"
#include "tools/job_auto.h"
#include "tools/job_file.h"
#include "tools/language_task.h"
#include "tools/loss_chart.h"
#include "tools/memory_fit.h"
#include "tools/picture.h"
#include "tools/overlap/trace_file.h"
#include "tools/progress.h"
#include "tools/resident.h"
#include "tools/run_directory.h"
#include "tools/run_summary.h"
#include "tools/sample.h"
#include "tools/session.h"
#include "tools/version.h"

namespace rz::tools {

namespace {

namespace checkpoint = optim::checkpoint;
using Clock = std::chrono::steady_clock;

constexpr double kMegabyte = 1e6;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Run {
 public:
  Run(const ringzero::Job& job, const TrainOptions& options, comm::Communicator& comm)
      : options_(options),
        comm_(comm),
        speaker_(comm.rank() == 0),
        path_(options.out.empty() ? "runs/" + job.name() : options.out),
        job_(with_bucket_chosen(job)),
        baseline_bytes_(resident_bytes()),
        session_(job_, make_task_of_rank(job_, comm), comm),
        items_(session_.task().item_name()) {}

  void execute() {
    {
      const optim::StepMeter::Pause pause(session_.meter());
      open();
      if (session_.recorder() != nullptr) probe_ = comm_.probe();
    }
    const auto& t = job_.training();
    const auto start = Clock::now();
    for (int64_t step = first_step_; step < t.steps(); ++step) {
      train_step(step);
      const int64_t done = step + 1;
      const bool evaluate_now = done == t.steps() || (t.evaluate_every() > 0 && done % t.evaluate_every() == 0);
      if (evaluate_now) validation_loss_ = session_.evaluate();
      record_step(done, evaluate_now);
      if (t.sample_every() > 0 && (done == t.steps() || done % t.sample_every() == 0)) draw_samples(done);
      if (t.save_every() > 0 && done % t.save_every() == 0 && done < t.steps()) save(done);
    }
    session_.meter().finish();
    if (!trained()) validation_loss_ = session_.evaluate();
    save(t.steps());
    if (trained()) write_trace();
    if (progress_) progress_->finish();
    finish(seconds_since(start));
  }

 private:
  // Otherwise what it resumes was done: what that left behind stays.
  bool trained() const { return first_step_ < job_.training().steps(); }

  // The job with a number for `bucket_mb: auto`: that of the run which is resumed, else what trial steps say.
  ringzero::Job with_bucket_chosen(ringzero::Job job) {
    if (job.sharding().bucket_mb() != kAuto) return job;
    if (options_.resume) {
      on_rank_zero(comm_, "sharding.bucket_mb: auto", [&] { tuned_.emplace().bucket_mb = load_job(RunDirectory::job_path(path_)).sharding().bucket_mb(); });
      double& chosen = (tuned_ ? *tuned_ : tuned_.emplace()).bucket_mb;
      comm_.broadcast(&chosen, 1, DType::f64, 0, {.name = "bucket size"}).wait();
    } else {
      tuned_ = tune_bucket(job, comm_);
    }
    job.mutable_sharding()->set_bucket_mb(tuned_->bucket_mb);
    return job;
  }

  void open() {
    check_samples();
    auto& files = checkpoint::real_file_system();
    const std::string text = effective_text(job_);
    const std::string saved = RunDirectory::checkpoint_path(path_);
    if (options_.resume) {
      std::vector<checkpoint::SliceToLoad> slices;
      const auto kept = session_.optimizer().slices_to_load();
      for (const auto& s : kept) slices.push_back({s.name, DType::f32, s.full_shape, s.begin, s.end, s.data});
      std::vector<float> task_state = session_.task().state();
      const auto numbers = static_cast<int64_t>(task_state.size());
      if (numbers > 0) slices.push_back({kTaskState, DType::f32, {numbers}, 0, numbers, task_state.data()});
      const auto info = checkpoint::load(files, saved, std::nullopt, slices, comm_);
      session_.optimizer().finish_load(kept);
      session_.task().restore(task_state);
      restore_loss_scaler(info);
      first_step_ = info.step;
      if (session_.sharded().exact() != nullptr) session_.sharded().exact()->set_state(info.counters);
      RZ_CONFIG_CHECK(info.seed == job_.seed(), "{} was trained with seed {}, the job says {}", saved, info.seed, job_.seed());
      RZ_CONFIG_CHECK(first_step_ <= job_.training().steps(), "{} has done {} steps already, the job asks for {}", saved, first_step_, job_.training().steps());
      if (speaker_)
        for (const auto& note : info.notes) std::fprintf(stderr, "ringzero: %s\n", note.c_str());
      on_rank_zero(comm_, "run directory", [&] { directory_.emplace(RunDirectory::resume(path_, text, first_step_)); });
    } else {
      if (!job_.training().initialize_from().empty()) initialize_from(job_.training().initialize_from());
      on_rank_zero(comm_, "run directory", [&] {
        directory_.emplace(RunDirectory::create(path_, text));
        write_file_atomically(path_ + "/" + session_.task().generation_file(), session_.task().generation_json());
      });
      checkpoint::prepare_directory(files, saved, comm_);
    }
    if (!speaker_ || options_.json) return;
    const auto& t = job_.training();
    fmt::print("{}: {} parameters, {} ranks x {} threads, stage {}, {} {} a step, {} steps{}\n", job_.name(),
               format_quantity(static_cast<double>(session_.sharded().payload_elements())), comm_.size(), thread_count(), job_.sharding().stage(),
               t.batch() * session_.task().items_per_sample(), items_, t.steps(), first_step_ > 0 ? fmt::format(" (resumed after {})", first_step_) : "");
    if (tuned_)
      fmt::print("sharding.bucket_mb: auto is {}{}\n", tuned_->bucket_mb == 0 ? "0, a bucket for each unit" : fmt::format("{:g} MiB", tuned_->bucket_mb),
                 tuned_->step_ms > 0 ? fmt::format(": {:.3f} ms a step simulated, {:.3f} with a bucket for each unit; chosen in {:.1f} s",
                                                   tuned_->step_ms, tuned_->default_step_ms, tuned_->seconds)
                                     : "");
    std::fflush(stdout);
    progress_.emplace(first_step_, t.steps(), detect_terminal(), items_);
  }

  // The weights, and where this run keeps an average that too, are those that `run` would be sampled with.
  void initialize_from(const std::string& run) {
    const auto kept = session_.optimizer().slices_to_load();
    std::vector<checkpoint::SliceToLoad> slices;
    const WeightNames names = weight_names(load_job(RunDirectory::job_path(run)));
    for (const auto& s : kept) {
      const size_t dot = s.name.find('.') + 1;
      const std::string kind = s.name.substr(0, dot);
      if (kind == "model." || kind == "average.") slices.push_back({names.prefix + s.name.substr(dot), DType::f32, s.full_shape, s.begin, s.end, s.data});
    }
    checkpoint::load(checkpoint::real_file_system(), RunDirectory::checkpoint_path(run), std::nullopt, slices, comm_, {names.skipped});
    session_.optimizer().finish_load(kept);
  }

  void restore_loss_scaler(const checkpoint::CheckpointInfo& info) {
    optim::LossScalerState state = session_.trainer().loss_scaler().state();
    if (const auto scale = info.scalars.find("loss_scale"); scale != info.scalars.end()) state.scale = scale->second;
    const auto read = [&](const char* name, int64_t& value) {
      if (const auto found = info.counters.find(name); found != info.counters.end()) value = found->second;
    };
    read("steps_at_loss_scale", state.good_steps);
    read("skipped_steps", state.skipped_steps);
    session_.trainer().loss_scaler().restore(state);
  }

  void train_step(int64_t step) {
    const auto start = Clock::now();
    last_ = session_.train_step(step);
    step_seconds_ = seconds_since(start);
    training_seconds_ += step_seconds_;
    tokens_ += last_.items;
  }

  void record_step(int64_t done, bool evaluated) {
    // A failure of rank 0's disk ends all ranks through the launcher, which names it; no collective per step is spent on it.
    if (!speaker_) return;
    nlohmann::ordered_json line;
    line["step"] = done;
    line["loss"] = last_.loss;
    line["grad_norm"] = last_.gradient_norm;
    line["lr"] = last_.learning_rate;
    line[items_] = last_.items;
    line["step_ms"] = step_seconds_ * 1e3;
    line[items_ + "_per_s"] = static_cast<double>(last_.items) / step_seconds_;
    if (scales_loss()) {
      line["loss_scale"] = last_.loss_scale;
      line["skipped"] = session_.trainer().loss_scaler().skipped_steps();  // so far
    }
    if (last_.repeats > 0) line["repeats"] = last_.repeats;
    line["peak_bytes"] = by_category(session_.meter().memory().by_category);
    if (evaluated) line["val_loss"] = validation_loss_;
    directory_->append_metrics(line);
    curve_.push_back({done, last_.loss});
    if (!progress_) return;
    progress_->step(done, last_.loss, last_.items);
    if (evaluated) progress_->line(fmt::format("step {}: validation loss {:.4f} {}", done, validation_loss_, session_.task().loss_unit()));
  }

  void save(int64_t done) {
    const optim::StepMeter::Pause pause(session_.meter());
    PhaseScope phase(Phase::save);
    checkpoint::CheckpointInfo info;
    info.step = done;
    info.stage = static_cast<int>(job_.sharding().stage());
    info.seed = job_.seed();
    info.data_cursor = static_cast<uint64_t>(done * job_.training().batch());
    info.job_text = effective_text(job_);
    const optim::LossScalerState& scaler = session_.trainer().loss_scaler().state();
    if (session_.sharded().exact() != nullptr) info.counters = session_.sharded().exact()->state();
    if (scales_loss()) {
      info.scalars["loss_scale"] = scaler.scale;
      info.counters["steps_at_loss_scale"] = scaler.good_steps;
    }
    // Kept in any precision: the optimizer counts the updates made.
    info.counters["skipped_steps"] = scaler.skipped_steps;
    const auto slices = session_.slices_to_save();
    const auto result = checkpoint::save(checkpoint::real_file_system(), RunDirectory::checkpoint_path(path_), info, slices, comm_);
    if (speaker_)
      for (const auto& note : result.notes) std::fprintf(stderr, "ringzero: %s\n", note.c_str());
  }

  // Each rank its own, beside its shards of the checkpoint.
  void write_trace() {
    trace::Recorder* recorder = session_.recorder();
    if (recorder == nullptr) return;
    on_rank_zero(comm_, "trace directory", [&] { std::filesystem::create_directories(trace_directory(path_)); });
    tools::write_trace(trace_path(path_, comm_.rank()), own_trace(*recorder, comm_, probe_, job_));
  }

  void finish(double wall_seconds) {
    nlohmann::ordered_json summary;
    summary["name"] = job_.name();
    summary["ranks"] = comm_.size();
    summary["threads"] = thread_count();
    summary["stage"] = job_.sharding().stage();
    if (tuned_) summary["bucket_mb_chosen"] = tuned_->bucket_mb;
    summary["precision"] = name(session_.sharded().options().precision.weights);
    if (scales_loss()) {
      summary["loss_scale"] = session_.trainer().loss_scaler().scale();
      summary["skipped_steps"] = session_.trainer().loss_scaler().skipped_steps();
    }
    summary["reduction"] = ringzero::Sharding::Reduction_Name(job_.sharding().reduction());
    summary["group_size"] = job_.sharding().group_size();
    summary["steps"] = job_.training().steps();
    summary["final_loss"] = trained() ? nlohmann::ordered_json(last_.loss) : nlohmann::ordered_json();
    summary["val_loss"] = validation_loss_;
    summary["weights_digest"] = fmt::format("{:016x}", session_.sharded().weights_digest());
    summary[items_ + "_per_s"] = training_seconds_ > 0 ? static_cast<double>(tokens_) / training_seconds_ : 0.0;
    summary["train_seconds"] = training_seconds_;
    summary["wall_seconds"] = wall_seconds;
    add_rank_summaries(summary, session_, comm_, baseline_bytes_);
    on_rank_zero(comm_, "summary", [&] {
      if (trained() || !directory_->has_summary()) directory_->write_summary(summary);
    });
    std::string sample;
    if (generates_text()) sample = generate_sample();
    if (!speaker_) return;
    if (options_.json) {
      fmt::print("{}\n", summary.dump(2));
      return;
    }
    fmt::print("{}\n", draw_curve(curve_, "training loss", {60, 12, detect_terminal().utf8}));
    if (!sample.empty()) fmt::print("A sample:\n{}\n\n", sample);
    fmt::print("validation loss {:.4f}, {} {}/s, weights {}, peak memory of rank 0 {} bytes; run in {}\n", validation_loss_,
               format_quantity(summary[items_ + "_per_s"].get<double>()), items_, summary["weights_digest"].get<std::string>(),
               format_quantity(summary["peak_bytes"].get<double>()), path_);
  }

  bool scales_loss() const { return job_.training().precision() == ringzero::Training::F16; }

  bool generates_text() const { return job_.has_sample() && job_.sample().tokens() > 0; }
  Vocabulary vocabulary() { return parse_vocabulary(session_.task().generation_json(), path_); }

  // What could not be drawn or written after hours of training is known now.
  void check_samples() {
    if (generates_text() && dynamic_cast<LanguageTask*>(&session_.task()) != nullptr) check_prompt(vocabulary(), job_.sample().prompt());
    if (job_.training().sample_every() > 0) dynamic_cast<DiffusionTask&>(session_.task()).check_sampling(job_.training());
  }

  std::string generate_sample() {
    auto* language = dynamic_cast<LanguageTask*>(&session_.task());
    if (language == nullptr) return {};
    std::string text;
    session_.with_sampled_weights([&] { text = sample_text(language->transformer(), vocabulary(), job_.sample(), job_.seed()); });
    return text;
  }

  // What the model draws so far, as a picture in the run directory.
  void draw_samples(int64_t done) {
    auto& task = dynamic_cast<DiffusionTask&>(session_.task());
    std::vector<uint8_t> images;
    session_.with_sampled_weights([&] {
      try {
        images = task.sample(job_.training(), comm_);
      } catch (const NotNumbers& problem) {  // on all ranks alike; a network that has just begun may do better later
        if (speaker_) std::fprintf(stderr, "ringzero: step %lld: no picture: %s\n", static_cast<long long>(done), problem.what());
      }
    });
    if (images.empty()) return;
    on_rank_zero(comm_, "samples", [&] {
      std::filesystem::create_directories(samples_directory(path_));
      const Sheet sheet = image_sheet(task.images().size, images, kSampleColumns, task.images().padding);
      write_file_atomically(sample_path(path_, done), png_of(sheet.size, sheet.pixels));
    });
    if (progress_) progress_->line(fmt::format("step {}: samples in {}", done, sample_path(path_, done)));
  }

  TrainOptions options_;
  comm::Communicator& comm_;
  bool speaker_;
  std::string path_;
  std::optional<TunedBucket> tuned_;
  ringzero::Job job_;
  int64_t baseline_bytes_;
  Session session_;
  std::string items_;

  std::optional<RunDirectory> directory_;
  std::optional<Progress> progress_;
  std::vector<CurvePoint> curve_;
  int64_t first_step_ = 0;
  int64_t tokens_ = 0;
  double training_seconds_ = 0;
  double step_seconds_ = 0;
  double validation_loss_ = 0;
  optim::StepResult last_;
  comm::ProbeResult probe_;
};

}  // namespace

void train(const ringzero::Job& job, const TrainOptions& options, comm::Communicator& comm) {
  MemoryTracker& memory = RankContext::current()->memory();
  const auto limit_bytes = static_cast<int64_t>(job.training().memory_limit_mb() * kMegabyte);
  memory.set_limit_bytes(limit_bytes);
  try {
    PhaseScope phase(Phase::init);
    Run(job, options, comm).execute();
  } catch (const comm::CommError&) {
    throw;  // another rank's error: it says the rest
  } catch (const Error& e) {
    // By text: what breaks the limit inside a checkpoint comes out as the checkpoint's error.
    if (std::string(e.what()).find(kMemoryLimitError) == std::string::npos) throw;
    throw Error(e.what() + what_would_fit(job, comm.size(), limit_bytes));
  }
}

}  // namespace rz::tools
