// What sums over ranks are defined to be, computed one after the other: inputs for which another order has other bits, and the sums of
// both orders (comm/types.h).
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "comm/types.h"
#include "runtime/core/dtype.h"

namespace rz::test {

using comm::chunk_of;
using comm::ReduceOp;

// Values over many magnitudes: adding them in another order gives other bits almost surely.
template <class T>
std::vector<T> wild(int rank, size_t count) {
  std::vector<T> out(count);
  uint64_t state = 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(rank + 1);
  for (T& x : out) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const double unit = static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
    x = static_cast<T>(static_cast<float>(unit * std::exp2(static_cast<double>((state >> 3) % 9))));
  }
  return out;
}

// Sequential definitions. In ring order chunk c is summed from rank c+1 round to rank c, rounded to T at every hop.
template <class T>
std::vector<T> ring_sum(int n, size_t count, ReduceOp op, int start_shift = 1) {
  using C = compute_t<T>;
  std::vector<std::vector<T>> in;
  for (int r = 0; r < n; ++r) in.push_back(wild<T>(r, count));
  std::vector<T> out(count);
  for (int c = 0; c < n; ++c) {
    for (size_t i = chunk_of(count, c, n).begin; i < chunk_of(count, c, n).end; ++i) {
      T sum = in[static_cast<size_t>((c + start_shift) % n)][i];
      for (int k = 1; k < n; ++k) {
        sum = static_cast<T>(static_cast<C>(sum) + static_cast<C>(in[static_cast<size_t>((c + start_shift + k) % n)][i]));
      }
      out[i] = op == ReduceOp::mean ? static_cast<T>(static_cast<C>(sum) / static_cast<C>(n)) : sum;
    }
  }
  return out;
}

// In rank order everything is added from rank 0 on, and rounded to T once.
template <class T>
std::vector<T> ordered_sum(int n, size_t count, ReduceOp op) {
  using C = compute_t<T>;
  std::vector<C> sum(count, C{0});
  for (int r = 0; r < n; ++r) {
    const auto in = wild<T>(r, count);
    for (size_t i = 0; i < count; ++i) sum[i] = r == 0 ? static_cast<C>(in[i]) : sum[i] + static_cast<C>(in[i]);
  }
  std::vector<T> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<T>(op == ReduceOp::mean ? sum[i] / static_cast<C>(n) : sum[i]);
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace rz::test
