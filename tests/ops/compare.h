// What the op tests share: values against double-precision references, bits against bits, runs with a given number of threads.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "runtime/autograd/engine.h"
#include "runtime/core/rank_context.h"
#include "tests/support/gradcheck.h"

namespace rz::test {

using Values = std::vector<double>;

// The largest |a - b| / max(1, |b|); infinite when the sizes differ or one value is NaN and the other is not.
inline double largest_error(const Values& a, const Values& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double error = std::abs(a[i] - b[i]) / std::max(1.0, std::abs(b[i]));
    worst = error <= worst ? worst : (std::isnan(error) ? INFINITY : error);
  }
  return worst;
}
inline double largest_error(const Tensor& a, const Values& b) { return largest_error(values_of(a), b); }

// The largest |a - b|; a failure when the sizes differ.
inline double largest_difference(const Tensor& a, const Tensor& b) {
  const Values x = values_of(a), y = values_of(b);
  EXPECT_EQ(x.size(), y.size());
  if (x.size() != y.size()) return INFINITY;
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  return most;
}

inline std::vector<std::byte> bits_of(const Tensor& t) {
  const Tensor dense = contiguous_copy(t);
  return {dense.raw_data(), dense.raw_data() + dense.size_bytes()};
}

// What `f` returns (tensors) under 1, 2 and 3 threads and again under 2 must be the same bits.
inline void expect_same_bits_for_any_threads(const std::function<std::vector<Tensor>()>& f) {
  std::vector<std::vector<std::byte>> first;
  for (const int threads : {1, 2, 3, 2}) {
    RankContextScope scope(RankContext::make(0, threads));
    std::vector<std::vector<std::byte>> bits;
    for (const Tensor& t : f()) bits.push_back(bits_of(t));
    if (first.empty()) first = bits;
    EXPECT_EQ(first, bits) << "with " << threads << " threads";
  }
}

inline Tensor leaf(Tensor t) {
  autograd::set_requires_grad(t, true);
  return t;
}

// The message of the rz::Error that `f` throws; empty (and a failure) when it throws none.
inline std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no rz::Error was thrown";
  return {};
}
inline void expect_error_names(const std::function<void()>& f, const std::vector<std::string>& parts) {
  const std::string message = error_of(f);
  for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
}

}  // namespace rz::test
