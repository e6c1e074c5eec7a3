#include "tools/bench_command.h"

#include <memory>

#include "tools/bench.h"
#include "tools/job_flags.h"
#include "tools/launch_job.h"

namespace rz::tools {

namespace {
struct BenchFlags {
  JobFlags job;
  BenchOptions options;
};
}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<BenchFlags>();
  auto* command = app.add_subcommand("bench", "time a job's training steps: rate, part of the machine's peak, time by op; under mpirun every process is a rank");
  add_job_flags(*command, flags->job, true, true);
  command->add_option("--warmup", flags->options.warmup, "steps before those that count")->capture_default_str();
  command->add_option("--count", flags->options.steps, "steps that count")->capture_default_str();
  command->add_flag("--json", flags->options.json, "print a JSON object");
  command->callback([flags, &exit_code] {
    RZ_CONFIG_CHECK(!flags->job.sets("training.steps"), "bench runs as many steps as --warmup and --count say: give --count, not --steps");
    const ringzero::Job job = flags->job.load();
    exit_code = comm::run_ranks(launch_options(job), [&](comm::Communicator& comm) { bench(job, flags->options, comm); });
  });
}

}  // namespace rz::tools
