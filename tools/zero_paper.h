// The figures of the ZeRO paper (Rajbhandari et al. 2020, arXiv 1910.02054) from its closed forms: mixed-precision Adam keeps
// 2P bytes of weights, 2P of gradients and 12P of optimizer state; a stage divides one more of these by the number of ranks.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace rz::tools {

// Bytes per parameter of weights, gradients and optimizer state.
struct StateBytes {
  double weights = 2;
  double gradients = 2;
  double optimizer = 12;
};
inline constexpr StateBytes kMixedAdam{2, 2, 12};

// Bytes of model states on each of `ranks`, per parameter.
double state_bytes_per_parameter(const StateBytes& bytes, int64_t stage, double ranks);

// A figure in GB as the paper's table 1 prints it: from 100 on cut to an integer, below rounded to one decimal, below 2 to two.
std::string paper_gigabytes(double gigabytes);

// Figure 1, table 1 and the first row of table 2 (no model parallelism) as text, and as JSON of the printed strings.
std::string zero_paper_text();
nlohmann::ordered_json zero_paper_json();

}  // namespace rz::tools
