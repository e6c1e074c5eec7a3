// 64-byte vectors of the compute type over rows of any floating-point type, for sums whose order must not be left to the compiler.
//
// * The width is 64 bytes on every CPU (the compiler splits it where registers are narrower), so the order of a sum does not
//   depend on the instruction set.
// * A reduction keeps 2 * kLanes<C> partial sums, added pairwise at the end.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "runtime/core/dtype.h"
#include "runtime/kernels/math.h"

namespace rz::cpu {

template <class C>
struct LanesOf {
  typedef C type __attribute__((vector_size(64)));
};
template <class C>
using Lanes = typename LanesOf<C>::type;
template <class C>
inline constexpr int64_t kLanes = 64 / static_cast<int64_t>(sizeof(C));

// kLanes elements from p, converted.
template <class T>
[[gnu::always_inline]] inline Lanes<compute_t<T>> load_lanes(const T* p) {
  using C = compute_t<T>;
  Lanes<C> v;
  if constexpr (std::is_same_v<T, C>) {
    std::memcpy(&v, p, sizeof v);
  } else {
    C wide[kLanes<C>];
    for (int64_t l = 0; l < kLanes<C>; ++l) wide[l] = static_cast<C>(p[l]);
    std::memcpy(&v, wide, sizeof v);
  }
  return v;
}

// The first `count` < kLanes elements, the rest `fill`.
template <class T>
inline Lanes<compute_t<T>> load_lanes_partial(const T* p, int64_t count, compute_t<T> fill) {
  using C = compute_t<T>;
  C wide[kLanes<C>];
  for (int64_t l = 0; l < kLanes<C>; ++l) wide[l] = l < count ? static_cast<C>(p[l]) : fill;
  Lanes<C> v;
  std::memcpy(&v, wide, sizeof v);
  return v;
}

template <class C>
inline C fold_sum(Lanes<C> v) {
  C lane[kLanes<C>];
  std::memcpy(lane, &v, sizeof v);
  for (int64_t half = kLanes<C> / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

// Sum over i < n of f(x[i], y[i]); f works on lanes. Pass the same pointer twice for a function of one row.
template <class T, class U, class F>
[[gnu::always_inline]] inline compute_t<T> sum_lanes(const T* x, const U* y, int64_t n, F f) {
  using C = compute_t<T>;
  constexpr int64_t kWidth = kLanes<C>;
  Lanes<C> even{};
  Lanes<C> odd{};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    even += f(load_lanes(x + i), load_lanes(y + i));
    odd += f(load_lanes(x + i + kWidth), load_lanes(y + i + kWidth));
  }
  if (i + kWidth <= n) {
    even += f(load_lanes(x + i), load_lanes(y + i));
    i += kWidth;
  }
  if (i < n) {
    const Lanes<C> last = f(load_lanes_partial(x + i, n - i, C(0)), load_lanes_partial(y + i, n - i, C(0)));
    for (int64_t l = 0; l < n - i; ++l) odd[l] += last[l];
  }
  return fold_sum<C>(even + odd);
}

template <class T>
inline compute_t<T> row_sum(const T* x, int64_t n) {
  return sum_lanes(x, x, n, [](auto v, auto) { return v; });
}

// The largest element; -inf for none. A NaN is ignored: what follows (x - max) brings it back.
template <class T>
inline compute_t<T> row_max(const T* x, int64_t n) {
  using C = compute_t<T>;
  constexpr int64_t kWidth = kLanes<C>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  Lanes<C> even = Lanes<C>{} + kLowest;
  Lanes<C> odd = even;
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    const Lanes<C> a = load_lanes(x + i);
    const Lanes<C> b = load_lanes(x + i + kWidth);
    even = a > even ? a : even;
    odd = b > odd ? b : odd;
  }
  for (; i < n; i += kWidth) {
    const Lanes<C> a = i + kWidth <= n ? load_lanes(x + i) : load_lanes_partial(x + i, n - i, kLowest);
    even = a > even ? a : even;
  }
  even = odd > even ? odd : even;
  C best = kLowest;
  for (int64_t l = 0; l < kWidth; ++l) best = even[l] > best ? even[l] : best;
  return best;
}

// exp(x) for x <= 0 where what would be subnormal may become 0: masked entries (-inf) are common, and arithmetic on subnormal
// numbers is a hundred times slower than on normal ones.
RZ_MATH_FN float exp_flushed(float x) {
  const float e = math::exp(x < -87.0f ? -87.0f : x);
  return x < -87.0f ? 0.0f : e;
}
RZ_MATH_FN double exp_flushed(double x) { return x < -708.0 ? 0.0 : math::exp(x); }

}  // namespace rz::cpu
