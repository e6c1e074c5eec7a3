// Quantiles of what was measured.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

namespace rz::tools {

// The value that a part q of the others, rounded down, does not exceed: q = 0.5 is the (lower) median. 0 of none.
inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, at);
  return *at;
}

inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

}  // namespace rz::tools
