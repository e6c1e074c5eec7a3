#include "tools/overlap/overlap_command.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <memory>

#include "tools/atomic_file.h"
#include "tools/job_file.h"
#include "tools/overlap/overlap_report.h"
#include "tools/overlap/perfetto.h"
#include "tools/overlap/report_html.h"
#include "tools/overlap/stragglers.h"
#include "tools/run_directory.h"

namespace rz::tools {

namespace {

constexpr size_t kPictures = 4;  // in a report

// The first picture of samples and the last ones, so that the page stays small.
std::vector<SamplePicture> read_samples(const std::string& run) {
  std::vector<int64_t> steps = sampled_steps(run);
  if (steps.size() > kPictures) steps.erase(steps.begin() + 1, steps.end() - (kPictures - 1));
  std::vector<SamplePicture> pictures;
  for (const int64_t step : steps) {
    std::ifstream in(sample_path(run, step), std::ios::binary);
    RZ_CONFIG_CHECK(in.good(), "cannot read {}", sample_path(run, step));
    pictures.push_back({step, {std::istreambuf_iterator<char>(in), {}}});
  }
  return pictures;
}

}  // namespace

void add_overlap_command(CLI::App& app) {
  struct Flags {
    std::string run;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand(
      "overlap", "Account for every millisecond of a run's steps: compute, exposed communication with its causes, other");
  command->add_option("RUN_DIR", flags->run, "Folder of a run, as `train` wrote it")->required();
  command->add_flag("--json", flags->json, "Print overlap.json instead of tables");
  command->footer("Writes into the folder: report.html (timeline, buckets, memory, loss and samples of images as pictures), overlap.json (the numbers), and perfetto.json (all\nrecorded steps, for ui.perfetto.dev).");
  command->callback([flags] {
    const RunTrace run = read_run_trace(flags->run);
    const std::string job_path = flags->run + "/job.textproto";
    const ringzero::Job job = parse_job(run.ranks.front().job_text, job_path);
    RunAccount account = account_run(run);
    simulate_usual_speed(run, account.stragglers);
    const auto json = overlap_json(account, job);
    write_file_atomically(flags->run + "/overlap.json", json.dump(1) + "\n");
    write_file_atomically(flags->run + "/report.html", report_html(run, account, job, RunDirectory::read_metrics(flags->run), read_samples(flags->run)));
    write_file_atomically(flags->run + "/perfetto.json", perfetto_json(run).dump() + "\n");
    if (flags->json) {
      fmt::print("{}\n", json.dump(2));
    } else {
      fmt::print("{}", overlap_text(account, job));
    }
  });
}

}  // namespace rz::tools
