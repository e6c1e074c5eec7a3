// ringzero: the command-line program. Each command lives in its own file and adds itself to the parser; errors end here, with
// one line on stderr and a non-zero code on every rank.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "comm/launch.h"
#include "tools/bench_command.h"
#include "tools/collectives_command.h"
#include "tools/console.h"
#include "tools/evaluate_command.h"
#include "tools/memory_command.h"
#include "tools/overlap/overlap_command.h"
#include "tools/overlap/simulate_command.h"
#include "tools/plan_command.h"
#include "tools/sample_command.h"
#include "tools/sampler_command.h"
#include "tools/train_command.h"
#include "tools/version.h"

int main(int argc, char** argv) {
  CLI::App app("ringzero: distributed training with ring all-reduce and ZeRO; start ranks with mpirun, or as threads", "ringzero");
  app.set_version_flag("--version", [] { return rz::tools::version_text(); });
  app.require_subcommand(1);
  int exit_code = 0;
  rz::tools::add_train_command(app, exit_code);
  rz::tools::add_bench_command(app, exit_code);
  rz::tools::add_sample_command(app, exit_code);
  rz::tools::add_sampler_command(app);
  rz::tools::add_evaluate_command(app, exit_code);
  rz::tools::add_collectives_command(app);
  rz::tools::add_plan_command(app);
  rz::tools::add_memory_command(app);
  rz::tools::add_overlap_command(app);
  rz::tools::add_simulate_command(app);
  try {
    rz::tools::require_cpu();
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // Every rank of a job would say the same: rank 0 speaks for all.
    return rz::tools::is_speaker() ? app.exit(e) : e.get_exit_code();
  } catch (const rz::ConfigError& e) {
    if (rz::tools::is_speaker()) std::fprintf(stderr, "ringzero: %s\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "ringzero: %s\n", e.what());
    return 1;
  }
  return exit_code;
}
