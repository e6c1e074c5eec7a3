// What a run left in its folder.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rz::tools {

inline nlohmann::json summary_of(const std::string& run) { return nlohmann::json::parse(std::ifstream(run + "/summary.json")); }

// Of every step.
inline std::vector<double> losses_of(const std::string& run) {
  std::vector<double> values;
  std::ifstream in(run + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) values.push_back(nlohmann::json::parse(line).at("loss").get<double>());
  return values;
}

}  // namespace rz::tools
