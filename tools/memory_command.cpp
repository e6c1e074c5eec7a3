#include "tools/memory_command.h"

#include <cstdio>
#include <filesystem>
#include <memory>

#include "tools/atomic_file.h"
#include "tools/job_flags.h"
#include "tools/memory_chart.h"
#include "tools/memory_fit.h"
#include "tools/state_form.h"
#include "tools/zero_paper.h"

namespace rz::tools {

namespace {

constexpr int64_t kDefaultSteps = 3;  // peaks are constant from the second on
constexpr int64_t kMostMeasuredRanks = 64;

struct MemoryFlags {
  JobFlags job;
  std::vector<int> ranks = {1, 2, 4};
  std::vector<int64_t> stages = {0, 1, 2, 3};
  bool measure = false;
  bool json = false;
  std::string out;
  std::string preset;
  std::string fit;
  double timeout_s = 0;
};

int64_t steps_of(const MemoryFlags& flags, const ringzero::Job& job) {
  for (const std::string& text : flags.job.overrides)
    if (text.starts_with("training.steps=")) return job.training().steps();
  return kDefaultSteps;
}

std::string directory_of(const MemoryFlags& flags, const ringzero::Job& job) {
  return flags.out.empty() ? "runs/" + job.name() + "_memory" : flags.out;
}

void check_measurable(const MemoryFlags& flags) {
  for (const int ranks : flags.ranks)
    RZ_CONFIG_CHECK(!flags.measure || ranks <= kMostMeasuredRanks, "--measure starts every rank on this machine: at most {} of them, not {}",
                    kMostMeasuredRanks, ranks);
}

void print_preset(const MemoryFlags& flags) {
  RZ_CONFIG_CHECK(flags.preset == "zero-paper", "unknown preset '{}'; valid: zero-paper", flags.preset);
  if (flags.json) fmt::print("{}\n", zero_paper_json().dump(2));
  else fmt::print("{}", zero_paper_text());
}

void run_table(const MemoryFlags& flags) {
  const ringzero::Job job = flags.job.load();
  const std::string out = directory_of(flags, job);
  std::vector<MemoryCell> cells;
  for (const int ranks : flags.ranks)
    for (const int64_t stage : flags.stages) {
      const ringzero::Job cell_job = job_of_cell(job, ranks, stage, steps_of(flags, job));
      cells.push_back(predict_cell(cell_job, ranks, flags.measure));
      if (!flags.measure) continue;
      std::fprintf(stderr, "measuring stage %d on %d ranks\n", static_cast<int>(stage), ranks);
      measure_cell(cell_job, cells.back(), {out + "/runs", flags.timeout_s});
    }
  const auto json = cells_json(job, cells);
  std::filesystem::create_directories(out);
  write_file_atomically(out + "/memory.json", json.dump(2) + "\n");
  const Drawing drawing =
      draw_memory(fmt::format("{}: {} parameters, memory of a rank by stage", job.name(), format_count(cells.front().parameters)), cells);
  write_file_atomically(out + "/memory.svg", drawing.svg());
  write_file_atomically(out + "/memory.png", drawing.png());
  if (flags.json) {
    fmt::print("{}\n", json.dump(2));
    return;
  }
  fmt::print("{}: {} parameters; MB (10^6 bytes) of the fullest rank, each category at its own peak\n{}", job.name(),
             format_count(cells.front().parameters), cells_text(cells));
  fmt::print("written: {0}/memory.json, {0}/memory.svg, {0}/memory.png\n", out);
}

void run_fit(const MemoryFlags& flags) {
  const ringzero::Job job = flags.job.load();
  const int64_t limit = parse_bytes(flags.fit);
  const std::string out = directory_of(flags, job);
  nlohmann::ordered_json json;
  json["limit_bytes"] = limit;
  std::string text;
  for (const int ranks : flags.ranks) {
    text += fmt::format("largest GPT that trains in {} per rank on {} ranks (a block for every 64 of width, context {}, batch {})\n",
                        format_bytes(static_cast<double>(limit)), ranks, job.transformer().context(), job.training().batch());
    text += fmt::format("{:>5}{:>14}{:>8}{:>8}{:>14}{:>14}{:>10}{:>16}{:>10}{:>9}{:>8}{}\n", "stage", "parameters", "width", "layers", "peak", "states",
                        "states/P", "closed form", "", fmt::format("x st. {}", flags.stages.front()), "form x", flags.measure ? "    measured" : "");
    const auto form_of = [&](int64_t stage) { return state_form(job, stage, ranks); };
    double first = 0;
    for (const int64_t stage : flags.stages) {
      auto fit = fit_largest(job, ranks, stage, steps_of(flags, job), limit);
      if (!fit) {
        text += fmt::format("{:>5}  not even the smallest member fits\n", stage);
        continue;
      }
      if (flags.measure) {
        // Proof: the run itself is held to the limit.
        std::fprintf(stderr, "training the fit of stage %d on %d ranks under the limit\n", static_cast<int>(stage), ranks);
        fit->job.mutable_training()->set_memory_limit_mb(static_cast<double>(limit) / 1e6);
        measure_cell(fit->job, fit->cell, {out + "/fit", flags.timeout_s});
      }
      const RankMemory& full = fit->cell.fullest_predicted();
      int64_t states = 0;
      for (const Category c : {Category::parameter, Category::gradient, Category::optimizer_state}) states += full.memory.current_bytes(c);
      const auto parameters = static_cast<double>(fit->cell.parameters);
      const double form = form_of(stage).bytes(1);
      if (first == 0) first = parameters;
      const double base = form_of(flags.stages.front()).bytes(1);
      text += fmt::format("{:>5}{:>14}{:>8}{:>8}{:>14}{:>14}{:>10.3f}{:>16}{:>10.3f}{:>9.2f}{:>8.2f}", stage, fit->cell.parameters, fit->width, fit->layers,
                          format_bytes(static_cast<double>(full.memory.peak.total)), format_bytes(static_cast<double>(states)),
                          static_cast<double>(states) / parameters, form_of(stage).text(), form, parameters / first, base / form);
      nlohmann::ordered_json row;
      row["ranks"] = ranks;
      row["stage"] = stage;
      row["width"] = fit->width;
      row["layers"] = fit->layers;
      row["heads"] = fit->heads;
      row["state_bytes"] = states;
      row["state_bytes_per_parameter"] = static_cast<double>(states) / parameters;
      row["closed_form"] = form_of(stage).text();
      row["closed_form_bytes_per_parameter"] = form;
      row["times_first_stage"] = parameters / first;
      row["closed_form_times_first_stage"] = base / form;
      if (flags.measure) {
        text += fmt::format("  trained, peak {}", format_bytes(static_cast<double>(fit->cell.fullest_measured().memory.peak.total)));
        row["trained"] = true;
      }
      row["cell"] = cells_json(fit->job, {fit->cell})["cells"][0];
      json["fits"].push_back(row);
      text += "\n";
    }
  }
  std::filesystem::create_directories(out);
  write_file_atomically(out + "/fit.json", json.dump(2) + "\n");
  if (flags.json) fmt::print("{}\n", json.dump(2));
  else fmt::print("{}written: {}/fit.json\n", text, out);
}

}  // namespace

void add_memory_command(CLI::App& app) {
  auto flags = std::make_shared<MemoryFlags>();
  auto* command = app.add_subcommand("memory", "memory of a job by stage and ranks: predicted, measured, drawn; the largest model that fits");
  add_job_flags(*command, flags->job, false, false);
  command->add_option("--ranks", flags->ranks, "numbers of ranks, comma separated")->delimiter(',')->capture_default_str();
  command->add_option("--stages", flags->stages, "ZeRO stages, comma separated")->delimiter(',')->check(CLI::Range(0, 3))->capture_default_str();
  command->add_flag("--measure", flags->measure, "also run it: starts mpirun for each row, 3 steps unless --steps says otherwise");
  command->add_option("--fit", flags->fit, "find the largest GPT that trains in so much memory per rank, as in 256MB; with --measure train it");
  command->add_option("--preset", flags->preset, "zero-paper: the ZeRO paper's figure 1 and tables 1 and 2; needs no job");
  command->add_option("--timeout", flags->timeout_s, "seconds that one measured run may take; 0 = any")->capture_default_str();
  command->add_option("--out", flags->out, "directory for memory.json, the pictures and the runs; default: runs/<job name>_memory");
  command->add_flag("--json", flags->json, "print a JSON object");
  command->callback([flags] {
    if (!flags->preset.empty()) return print_preset(*flags);
    RZ_CONFIG_CHECK(!flags->job.path.empty(), "give a job file, or --preset zero-paper");
    RZ_CONFIG_CHECK(!flags->ranks.empty() && !flags->stages.empty(), "give at least one number of ranks and one stage");
    RZ_CONFIG_CHECK(!flags->job.sets("sharding.stage"), "memory computes the stages of --stages: give --stages, not --stage");
    check_measurable(*flags);
    if (flags->fit.empty()) run_table(*flags);
    else run_fit(*flags);
  });
}

}  // namespace rz::tools
