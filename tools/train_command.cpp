#include "tools/train_command.h"

#include <memory>

#include "comm/launch.h"
#include "tools/job_file.h"
#include "tools/train.h"

namespace rz::tools {

namespace {

struct Flags {
  std::string job;
  TrainOptions options;
  std::vector<std::string> overrides;
};

// A shorthand for what people vary most: `--steps 100` is `--set training.steps=100`.
void add_shorthand(CLI::App& command, const std::shared_ptr<Flags>& flags, const std::string& flag, const std::string& field, const std::string& help) {
  command.add_option_function<std::string>(
      flag, [flags, field](const std::string& value) { flags->overrides.push_back(field + "=" + value); }, fmt::format("{} ({})", help, field));
}

comm::LaunchOptions launch_options(const ringzero::Job& job) {
  const auto& c = job.communication();
  comm::LaunchOptions options;
  switch (c.transport()) {
    case ringzero::Communication::AUTO: break;
    case ringzero::Communication::THREADS: options.transport = comm::TransportKind::threads; break;
    case ringzero::Communication::MPI: options.transport = comm::TransportKind::mpi; break;
  }
  const bool threads = options.transport == comm::TransportKind::threads || !comm::under_mpirun();
  if (threads) options.ranks = static_cast<int>(c.ranks());
  options.deadline_s = c.deadline_s();
  return options;
}

}  // namespace

void add_train_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand("train", "train a job; under mpirun every process is a rank");
  command->add_option("job", flags->job, "job file, protobuf text (proto/job.proto)")->required();
  command->add_option("--out", flags->options.out, "run directory; default: runs/<job name>");
  command->add_option("--set", flags->overrides, "override a field: path.to.field=value; may be repeated")->take_all()->allow_extra_args(false);
  command->add_flag("--resume", flags->options.resume, "go on from the newest whole checkpoint in the run directory");
  command->add_flag("--json", flags->options.json, "print the summary as JSON");
  add_shorthand(*command, flags, "--steps", "training.steps", "optimizer steps");
  add_shorthand(*command, flags, "--seed", "seed", "seed of everything random");
  add_shorthand(*command, flags, "--threads", "training.threads", "compute threads of each rank, 0 = automatic");
  add_shorthand(*command, flags, "--stage", "sharding.stage", "ZeRO stage: 0, 1, 2 or 3");
  add_shorthand(*command, flags, "--bucket-mb", "sharding.bucket_mb", "bucket size in MiB, 0 = a bucket per unit");
  add_shorthand(*command, flags, "--reduction", "sharding.reduction", "how gradients are summed: ring, ordered or exact");
  add_shorthand(*command, flags, "--group-size", "sharding.group_size", "hybrid sharding in groups of so many ranks, 0 = all");
  add_shorthand(*command, flags, "--micro-batch", "training.micro_batch", "sequences in a micro-batch of exact sums");
  add_shorthand(*command, flags, "--accumulate", "training.accumulate", "micro-batches of a step");
  add_shorthand(*command, flags, "--precision", "training.precision", "f32, bf16 or f16: type of weights, gradients and activations");
  add_shorthand(*command, flags, "--reduce-dtype", "sharding.reduce_dtype", "type in which gradients are summed: f32 or that of the precision");
  add_shorthand(*command, flags, "--recompute", "training.recompute", "what backward computes again: NONE, SELECTIVE, FULL or SQRT");
  add_shorthand(*command, flags, "--ranks", "communication.ranks", "ranks as threads of this process, without mpirun");
  add_shorthand(*command, flags, "--transport", "communication.transport", "AUTO, THREADS or MPI");
  command->callback([flags, &exit_code] {
    const ringzero::Job job = load_job(flags->job, flags->overrides);
    exit_code = comm::run_ranks(launch_options(job), [&](comm::Communicator& comm) { train(job, flags->options, comm); });
  });
}

}  // namespace rz::tools
