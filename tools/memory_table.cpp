#include "tools/memory_table.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "comm/launch.h"
#include "tools/atomic_file.h"
#include "tools/job_auto.h"
#include "tools/job_file.h"
#include "tools/mpirun.h"
#include "tools/run_summary.h"
#include "tools/task.h"

namespace rz::tools {

namespace {

namespace fs = std::filesystem;

const RankMemory& fullest(const std::vector<RankMemory>& ranks) {
  RZ_CHECK(!ranks.empty(), "no rank was planned or measured");
  return *std::ranges::max_element(ranks, {}, [](const RankMemory& r) { return r.memory.peak.total; });
}

int64_t difference(const MemoryPeak& a, const MemoryPeak& b) {
  int64_t worst = std::abs(a.total - b.total);
  for (size_t c = 0; c < kCategories; ++c) worst = std::max(worst, std::abs(a.by_category[c] - b.by_category[c]));
  return worst;
}

CategoryBytes read_categories(const nlohmann::json& json) {
  CategoryBytes bytes{};
  for (size_t c = 0; c < kCategories; ++c) bytes[c] = json.at(name(static_cast<Category>(c))).get<int64_t>();
  return bytes;
}

RankMemory read_rank(const nlohmann::json& json) {
  RankMemory rank;
  const auto& memory = json.at("memory");
  rank.memory.peak.total = memory.at("peak_total_bytes");
  rank.memory.peak.by_category = read_categories(memory.at("peak_bytes"));
  rank.memory.peak.at_total_peak = read_categories(memory.at("at_total_peak_bytes"));
  for (size_t p = 0; p < kPhases; ++p) {
    const auto& phase = memory.at("by_phase").at(name(static_cast<Phase>(p)));
    rank.memory.by_phase[p].total = phase.at("total");
    rank.memory.by_phase[p].by_category = read_categories(phase);
  }
  for (const Category c : {Category::parameter, Category::gradient, Category::optimizer_state})
    rank.memory.current[static_cast<size_t>(c)] = memory.at("state_bytes").at(name(c));
  rank.memory.unaccounted_bytes = memory.at("unaccounted_bytes");
  rank.sent_bytes_per_step = json.at("wire").at("sent_bytes_per_step");
  rank.rss_growth_bytes = memory.at("rss_peak_bytes").get<int64_t>() - memory.at("rss_baseline_bytes").get<int64_t>();
  return rank;
}

nlohmann::ordered_json rank_json(const RankMemory& rank, bool measured) {
  auto json = memory_json(rank.memory);
  json["sent_bytes_per_step"] = rank.sent_bytes_per_step;
  if (measured) json["rss_growth_bytes"] = rank.rss_growth_bytes;
  return json;
}

}  // namespace

const RankMemory& MemoryCell::fullest_predicted() const { return fullest(predicted); }
const RankMemory& MemoryCell::fullest_measured() const { return fullest(measured); }

int64_t MemoryCell::worst_difference_bytes() const {
  int64_t worst = 0;
  for (size_t r = 0; r < std::min(predicted.size(), measured.size()); ++r) {
    worst = std::max(worst, difference(predicted[r].memory.peak, measured[r].memory.peak));
    for (size_t p = 0; p < kPhases; ++p) worst = std::max(worst, difference(predicted[r].memory.by_phase[p], measured[r].memory.by_phase[p]));
  }
  return worst;
}

ringzero::Job job_of_cell(const ringzero::Job& given, int ranks, int64_t stage, int64_t steps) {
  ringzero::Job job = given;
  job.clear_sample();
  job.mutable_sharding()->set_stage(stage);
  auto& training = *job.mutable_training();
  training.set_steps(steps);
  training.set_batch(std::max(training.batch(), least_batch(job, ranks)));
  training.set_evaluate_every(0);
  training.set_save_every(0);
  if (training.evaluate_sequences() == 0) {
    training.set_evaluate_sequences(samples_at_once(job) * ranks);
  }
  auto& schedule = *job.mutable_schedule();
  schedule.set_warmup_steps(std::min(schedule.warmup_steps(), steps));
  job.mutable_communication()->set_transport(ringzero::Communication::AUTO);
  return job;
}

MemoryCell predict_cell(const ringzero::Job& job, int ranks, bool every_rank) {
  MemoryCell cell;
  cell.ranks = ranks;
  cell.stage = job.sharding().stage();
  for (int rank = 0; rank < (every_rank ? ranks : 1); ++rank) {
    const Plan plan = make_plan(job, {.ranks = ranks, .rank = rank});
    cell.parameters = plan.parameters;
    cell.padded_parameters = plan.padded_parameters;
    cell.predicted.push_back({plan.memory, static_cast<double>(plan.traffic.sent_bytes()), 0});
  }
  return cell;
}

void read_measured(const std::string& run, MemoryCell& cell) {
  std::ifstream file(run + "/summary.json");
  RZ_CHECK(file.good(), "{}/summary.json is missing", run);
  const auto summary = nlohmann::json::parse(file);
  cell.measured.clear();
  for (const auto& rank : summary.at("per_rank")) cell.measured.push_back(read_rank(rank));
}

void measure_cell(const ringzero::Job& job, MemoryCell& cell, const MeasureOptions& options) {
  RZ_CONFIG_CHECK(job.sharding().bucket_mb() != kAuto,
                  "sharding.bucket_mb is auto: a run would choose other buckets than were predicted; give --set sharding.bucket_mb=N, with the N "
                  "that a run chose (bucket_mb_chosen in its summary.json)");
  const std::string base = fmt::format("{}/stage{}_ranks{}", options.directory, cell.stage, cell.ranks);
  fs::remove_all(base);
  fs::create_directories(base);
  write_file_atomically(base + "/job.textproto", effective_text(job));
  mpirun_self(cell.ranks, {"train", base + "/job.textproto", "--out", base + "/run", "--json"}, base + "/output.txt", options.timeout_s);
  read_measured(base + "/run", cell);
  fs::remove_all(base + "/run/checkpoint");
}

nlohmann::ordered_json cells_json(const ringzero::Job& job, const std::vector<MemoryCell>& cells) {
  nlohmann::ordered_json json;
  json["name"] = job.name();
  json["cells"] = nlohmann::ordered_json::array();
  for (const MemoryCell& cell : cells) {
    nlohmann::ordered_json c;
    c["stage"] = cell.stage;
    c["ranks"] = cell.ranks;
    c["parameters"] = cell.parameters;
    c["padded_parameters"] = cell.padded_parameters;
    c["predicted_peak_bytes"] = cell.fullest_predicted().memory.peak.total;
    if (!cell.measured.empty()) {
      c["measured_peak_bytes"] = cell.fullest_measured().memory.peak.total;
      c["worst_difference_bytes"] = cell.worst_difference_bytes();
    }
    for (const auto& rank : cell.predicted) c["predicted"].push_back(rank_json(rank, false));
    for (const auto& rank : cell.measured) c["measured"].push_back(rank_json(rank, true));
    json["cells"].push_back(std::move(c));
  }
  return json;
}

std::string cells_text(const std::vector<MemoryCell>& cells) {
  const bool any_measured = std::ranges::any_of(cells, [](const MemoryCell& c) { return !c.measured.empty(); });
  const auto mb = [](int64_t bytes) { return fmt::format("{:.3f}", static_cast<double>(bytes) / 1e6); };
  std::string text = fmt::format("{:>5} {:>5} |{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}{:>10} |{:>11}", "stage", "ranks", "weights", "gradients", "optimizer",
                                 "activation", "act. grad.", "communic.", "work+in", "peak");
  if (any_measured) text += fmt::format("{:>12}{:>12}{:>13}{:>12}{:>8}", "measured", "difference", "unaccounted", "RSS growth", "ratio");
  text += "\n";
  for (const MemoryCell& cell : cells) {
    const MemoryPeak& peak = cell.fullest_predicted().memory.peak;
    const auto of = [&](Category c) { return peak.by_category[static_cast<size_t>(c)]; };
    text += fmt::format("{:>5} {:>5} |{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}{:>10} |{:>11}", cell.stage, cell.ranks, mb(of(Category::parameter)),
                        mb(of(Category::gradient)), mb(of(Category::optimizer_state)), mb(of(Category::activation)),
                        mb(of(Category::activation_gradient)), mb(of(Category::communication)), mb(of(Category::workspace) + of(Category::input)),
                        mb(peak.total));
    if (!cell.measured.empty()) {
      int64_t unaccounted = 0;
      for (const auto& rank : cell.measured) unaccounted = std::max(unaccounted, std::abs(rank.memory.unaccounted_bytes));
      const RankMemory& full = cell.fullest_measured();
      text += fmt::format("{:>12}{:>10} B{:>11} B{:>12}{:>8.3f}", mb(full.memory.peak.total), cell.worst_difference_bytes(), unaccounted,
                          mb(full.rss_growth_bytes),
                          static_cast<double>(full.rss_growth_bytes) / static_cast<double>(std::max<int64_t>(1, full.memory.peak.total)));
    }
    text += "\n";
  }
  return text;
}

}  // namespace rz::tools
