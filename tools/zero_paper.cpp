#include "tools/zero_paper.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "runtime/core/error.h"

namespace rz::tools {

namespace {

constexpr std::array<int, 6> kRanks = {1, 4, 16, 64, 256, 1024};
struct Model {
  const char* name;
  double parameters;
};
constexpr std::array<Model, 3> kModels = {{{"7.5B", 7.5e9}, {"128B", 128e9}, {"1T", 1e12}}};
constexpr double kFigureRanks = 64;
constexpr double kTable2Bytes = 32e9;
constexpr double kGiga = 1e9;

// Half up, as people round: printf would make 41.2 of 41.25.
std::string rounded(double value, int decimals) {
  const double scale = std::pow(10.0, decimals);
  std::string text = fmt::format("{:.{}f}", std::floor(value * scale + 0.5 + 1e-9) / scale, decimals);
  if (decimals > 0) {
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

double gigabytes(double parameters, int64_t stage, double ranks) { return parameters * state_bytes_per_parameter(kMixedAdam, stage, ranks) / kGiga; }

std::string largest(int64_t stage) {
  return rounded(kTable2Bytes / state_bytes_per_parameter(kMixedAdam, stage, kFigureRanks) / kGiga, 1) + "B";
}

}  // namespace

double state_bytes_per_parameter(const StateBytes& b, int64_t stage, double ranks) {
  RZ_CHECK(stage >= 0 && stage <= 3 && ranks >= 1, "stage {} on {} ranks", stage, ranks);
  return (stage >= 3 ? b.weights / ranks : b.weights) + (stage >= 2 ? b.gradients / ranks : b.gradients) +
         (stage >= 1 ? b.optimizer / ranks : b.optimizer);
}

std::string paper_gigabytes(double value) {
  if (value >= 100) return fmt::format("{:.0f}", std::floor(value + 1e-9));
  return rounded(value, value < 2 ? 2 : 1);
}

std::string zero_paper_text() {
  std::string text = "ZeRO (arXiv 1910.02054): model states per rank in GB (10^9 bytes), 2 + 2 + 12 bytes per parameter\n\n";
  text += "Figure 1: 7.5B parameters on 64 ranks\n";
  for (int64_t stage = 0; stage <= 3; ++stage)
    text += fmt::format("  {:<10}{:>8}\n", stage == 0 ? "baseline" : fmt::format("stage {}", stage), rounded(gigabytes(7.5e9, stage, kFigureRanks), 1));
  text += "\nTable 1: stage 1 / 2 / 3\n";
  text += fmt::format("  {:>6}", "ranks");
  for (const Model& m : kModels) text += fmt::format("{:>25}", m.name);
  text += "\n";
  for (const int ranks : kRanks) {
    text += fmt::format("  {:>6}", ranks);
    for (const Model& m : kModels) {
      std::string cell;
      for (int64_t stage = 1; stage <= 3; ++stage) cell += (stage > 1 ? " / " : "") + paper_gigabytes(gigabytes(m.parameters, stage, ranks));
      text += fmt::format("{:>25}", cell);
    }
    text += "\n";
  }
  text += "\nTable 2: largest model in 32 GB on 64 ranks, without model parallelism\n";
  for (int64_t stage = 0; stage <= 3; ++stage)
    text += fmt::format("  {:<10}{:>8}\n", stage == 0 ? "baseline" : fmt::format("stage {}", stage), largest(stage));
  return text;
}

nlohmann::ordered_json zero_paper_json() {
  nlohmann::ordered_json json;
  for (int64_t stage = 0; stage <= 3; ++stage) {
    json["figure_1"].push_back(rounded(gigabytes(7.5e9, stage, kFigureRanks), 1));
    json["table_2"].push_back(largest(stage));
  }
  for (const int ranks : kRanks) {
    nlohmann::ordered_json row;
    row["ranks"] = ranks;
    for (const Model& m : kModels)
      for (int64_t stage = 1; stage <= 3; ++stage) row[m.name].push_back(paper_gigabytes(gigabytes(m.parameters, stage, ranks)));
    json["table_1"].push_back(row);
  }
  return json;
}

}  // namespace rz::tools
