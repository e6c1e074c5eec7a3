#include "tools/train_command.h"

#include <memory>

#include "tools/job_flags.h"
#include "tools/launch_job.h"
#include "tools/train.h"

namespace rz::tools {

namespace {

struct TrainFlags {
  JobFlags job;
  TrainOptions options;
};

}  // namespace

void add_train_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TrainFlags>();
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
