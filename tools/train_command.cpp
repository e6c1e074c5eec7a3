#include "tools/train_command.h"

#include <memory>

#include "comm/launch.h"
#include "runtime/core/allocator.h"
#include "tools/job_flags.h"
#include "tools/session.h"
#include "tools/train.h"

namespace rz::tools {

namespace {

struct Flags {
  JobFlags job;
  TrainOptions options;
};

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
  options.network = network_of(job);
  options.fuzz_seed = job.experiment().fuzz_seed();
  allocator::set_poison(options.fuzz_seed != 0);
  return options;
}

}  // namespace

void add_train_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand("train", "train a job; under mpirun every process is a rank");
  add_job_flags(*command, flags->job, true, true);
  command->add_option("--out", flags->options.out, "run directory; default: runs/<job name>");
  command->add_flag("--resume", flags->options.resume, "go on from the newest whole checkpoint in the run directory");
  command->add_flag("--json", flags->options.json, "print the summary as JSON");
  command->callback([flags, &exit_code] {
    const ringzero::Job job = flags->job.load();
    exit_code = comm::run_ranks(launch_options(job), [&](comm::Communicator& comm) { train(job, flags->options, comm); });
  });
}

}  // namespace rz::tools
