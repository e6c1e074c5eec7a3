#include "tools/overlap/simulate_command.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "tools/atomic_file.h"
#include "tools/overlap/simulate_report.h"
#include "tools/overlap/sweep_chart.h"

namespace rz::tools {

namespace {

struct SimulateFlags {
  std::string run;
  std::string out;
  WhatIf what;
  std::vector<std::string> sweeps;
  bool best = true;
  bool json = false;
};

void run(const SimulateFlags& flags) {
  Predictor predictor(recorded_run(read_run_trace(flags.run)));
  SimulationReport report;
  // On the recorded machine, whatever is asked for.
  report.replayed = predictor.predict({.same_machine = predictor.recorded().one_machine});
  report.simulated = predictor.predict(flags.what);
  if (flags.best) {
    const auto bucket = predictor.best_bucket(flags.what);
    report.best = predictor.best_prefetch(bucket.what).prediction;
  }
  for (const std::string& sweep : flags.sweeps) report.sweeps.push_back(run_sweep(predictor, flags.what, sweep));

  const std::string out = flags.out.empty() ? flags.run : flags.out;
  std::filesystem::create_directories(out);
  const auto json = simulation_json(predictor.recorded(), report);
  write_file_atomically(out + "/simulate.json", json.dump(1) + "\n");
  for (const Sweep& sweep : report.sweeps) {
    const Drawing drawing = draw_sweep(fmt::format("{}: a step over {}", predictor.recorded().job.name(), name(sweep.over)), sweep);
    const std::string path = fmt::format("{}/simulate_{}", out, name(sweep.over));
    write_file_atomically(path + ".svg", drawing.svg());
    write_file_atomically(path + ".png", drawing.png());
  }
  if (flags.json)
    fmt::print("{}\n", json.dump(2));
  else
    fmt::print("{}", simulation_text(predictor.recorded(), report));
}

}  // namespace

void add_simulate_command(CLI::App& app) {
  auto flags = std::make_shared<SimulateFlags>();
  auto* command =
      app.add_subcommand("simulate", "What a step of a recorded run would take with other links, ranks, stages, buckets and prefetch");
  command->add_option("RUN_DIR", flags->run, "folder of a run, as `train` wrote it")->required();
  command->add_option("--ranks", flags->what.ranks, "number of ranks, which share the job's batch")->check(CLI::Range(1, 1 << 17));
  command->add_option("--link", flags->what.link, "links, as in 1Gbit,50us");
  command->add_option("--inter-node-link", flags->what.inter_node_link, "links between nodes");
  command->add_option("--nodes", flags->what.nodes, "nodes, equal blocks of ranks");
  const auto add = [&](const std::string& flag, const std::string& field, const std::string& help) {
    command->add_option_function<std::string>(
        flag, [flags, field](const std::string& value) { flags->what.overrides.push_back(field + "=" + value); }, help);
  };
  add("--stage", "sharding.stage", "ZeRO stage: 0, 1, 2 or 3");
  add("--bucket", "sharding.bucket_mb", "bucket size in MiB, 0 = a bucket for each unit");
  add("--prefetch", "sharding.prefetch", "stage 3: units whose weights are gathered ahead of use");
  add("--group-size", "sharding.group_size", "hierarchical rings: within groups of so many neighbours, then between groups; 0 = one ring");
  command->add_option("--overlap", "on, or off: every collective is waited for where it is issued")
      ->check(CLI::IsMember({"on", "off"}))
      ->each([flags](const std::string& value) { flags->what.overrides.push_back(fmt::format("sharding.overlap={}", value == "on")); });
  add("--batch", "training.batch", "sequences in a step of all ranks");
  command->add_flag("--same-machine", flags->what.same_machine,
                    "all ranks share the recorded machine's cores; without it each has as many as it had");
  command->add_option("--sweep", flags->sweeps, "also vary ranks, link, bucket or stage; with values: link=100Mbit,1Gbit; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("!--no-best", flags->best, "do not look for the best bucket size and prefetch depth");
  command->add_option("--out", flags->out, "folder for what is written; default: RUN_DIR");
  command->add_flag("--json", flags->json, "print simulate.json instead of tables");
  command->footer("What is not given is as recorded. Writes simulate.json and, for each sweep, simulate_<sweep>.svg and .png.");
  command->callback([flags] { run(*flags); });
}

}  // namespace rz::tools
