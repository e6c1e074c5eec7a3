// Vectors of the compute type, as wide as the registers of the instruction set that the build is for (RZ_CPU_LEVEL), in GCC's vector
// extension: what products keep in registers, and sums whose order must not be left to the compiler.
//
// The order of a row's sum depends on that level and the row's length alone: 2 * kLanes<C> partial sums, added pairwise at the end.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime/core/dtype.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/math.h"

namespace rz::cpu {

#if defined(__AVX512F__)
inline constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int64_t kVectorBytes = 32;
#else
inline constexpr int64_t kVectorBytes = 16;
#endif

template <class C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
  typedef C memory __attribute__((vector_size(kVectorBytes), aligned(alignof(C)), may_alias));
};
template <class C>
using Lanes = typename LanesOf<C>::type;
// Where they lie: needs only the alignment of an element.
template <class C>
using LanesInMemory = typename LanesOf<C>::memory;
template <class C>
inline constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(C));

// kLanes elements from p, converted.
template <class T>
[[gnu::always_inline]] inline Lanes<compute_t<T>> load_lanes(const T* p) {
  using C = compute_t<T>;
  if constexpr (std::is_same_v<T, C>) {
    return *reinterpret_cast<const LanesInMemory<C>*>(p);
  } else {
    alignas(kVectorBytes) C wide[kLanes<C>];
    load_run(p, 1, wide, kLanes<C>);
    return *reinterpret_cast<const LanesInMemory<C>*>(wide);
  }
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

// Combines the lanes pairwise: lane l with lane l + half, for halves 8, 4, 2, 1 (of 16).
template <class C, size_t... kLane>
[[gnu::always_inline]] inline C fold_lanes(Lanes<C> v, auto combine, std::index_sequence<kLane...>) {
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  const auto stage = [&](auto half) {
    constexpr size_t kHalf = decltype(half)::value;
    if constexpr (kHalf < sizeof...(kLane))
      v = combine(v, __builtin_shuffle(v, Mask{static_cast<Index>((kLane + kHalf) % sizeof...(kLane))...}));
  };
  stage(std::integral_constant<size_t, 8>{});
  stage(std::integral_constant<size_t, 4>{});
  stage(std::integral_constant<size_t, 2>{});
  stage(std::integral_constant<size_t, 1>{});
  return v[0];
}
template <class C>
inline C fold_sum(Lanes<C> v) {
  return fold_lanes<C>(
      v, [](Lanes<C> a, Lanes<C> b) { return a + b; }, std::make_index_sequence<static_cast<size_t>(kLanes<C>)>{});
}
template <class C>
inline C fold_max(Lanes<C> v) {
  return fold_lanes<C>(
      v, [](Lanes<C> a, Lanes<C> b) { return a > b ? a : b; }, std::make_index_sequence<static_cast<size_t>(kLanes<C>)>{});
}

// Sum over i < n of f(x[i], y[i]); f works on lanes. Pass the same pointer twice for a function of one row.
template <class T, class U, class F>
[[gnu::always_inline]] inline compute_t<T> sum_lanes(const T* x, const U* y, int64_t n, F f) {
  using C = compute_t<T>;
  constexpr int64_t kWide = kLanes<C>;
  Lanes<C> even{};
  Lanes<C> odd{};
  int64_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    even += f(load_lanes(x + i), load_lanes(y + i));
    odd += f(load_lanes(x + i + kWide), load_lanes(y + i + kWide));
  }
  if (i + kWide <= n) {
    even += f(load_lanes(x + i), load_lanes(y + i));
    i += kWide;
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
  constexpr int64_t kWide = kLanes<C>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  Lanes<C> even = Lanes<C>{} + kLowest;
  Lanes<C> odd = even;
  int64_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    const Lanes<C> a = load_lanes(x + i);
    const Lanes<C> b = load_lanes(x + i + kWide);
    even = a > even ? a : even;
    odd = b > odd ? b : odd;
  }
  for (; i < n; i += kWide) {
    const Lanes<C> a = i + kWide <= n ? load_lanes(x + i) : load_lanes_partial(x + i, n - i, kLowest);
    even = a > even ? a : even;
  }
  return fold_max<C>(odd > even ? odd : even);
}

// exp(x) for x <= 0 (up to a few units above) where what would be subnormal becomes 0: masked entries (-inf) are common, and
// arithmetic on subnormal numbers is a hundred times slower than on normal ones. math::exp without the cases that cannot occur.
RZ_MATH_FN float exp_flushed(float x) {
  const auto [r, n] = math::detail::reduce_ln2(x);
  const float e = (math::detail::expm1_reduced(r) + 1.0f) * math::detail::power_of_two(n);
  return x < -87.0f ? 0.0f : e;
}
RZ_MATH_FN double exp_flushed(double x) { return x < -708.0 ? 0.0 : math::exp(x); }

// f on every lane; the compiler makes vector code of it.
template <class C, class F>
[[gnu::always_inline]] inline Lanes<C> map_lanes(Lanes<C> v, F f) {
  C in[kLanes<C>];
  C out[kLanes<C>];
  std::memcpy(in, &v, sizeof v);
  for (int64_t l = 0; l < kLanes<C>; ++l) out[l] = f(in[l]);
  std::memcpy(&v, out, sizeof v);
  return v;
}

template <class C>
[[gnu::always_inline]] inline void store_lanes(C* p, Lanes<C> v) {
  *reinterpret_cast<LanesInMemory<C>*>(p) = v;
}

// One stage of a transposition: exchanges the off-diagonal kHalf x kHalf blocks of every 2 kHalf x 2 kHalf block.
template <class C, int kHalf, size_t... kLane>
[[gnu::always_inline]] inline void transpose_stage(Lanes<C>* rows, std::index_sequence<kLane...>) {
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  constexpr Index kCount = static_cast<Index>(kLanes<C>);
  const Mask upper = {((kLane & kHalf) == 0 ? static_cast<Index>(kLane) : static_cast<Index>(kLane) - kHalf + kCount)...};
  const Mask lower = {((kLane & kHalf) == 0 ? static_cast<Index>(kLane) + kHalf : static_cast<Index>(kLane) + kCount)...};
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<C>; ++i) {
    if ((i & kHalf) != 0) continue;
    const Lanes<C> a = rows[i];
    const Lanes<C> b = rows[i + kHalf];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + kHalf] = __builtin_shuffle(a, b, lower);
  }
  if constexpr (kHalf > 1) transpose_stage<C, kHalf / 2>(rows, std::index_sequence<kLane...>{});
}

// rows[c][r] = rows[r][c]: log2(kLanes) stages in registers.
template <class C>
[[gnu::always_inline]] inline void transpose(Lanes<C> (&rows)[kLanes<C>]) {
  transpose_stage<C, static_cast<int>(kLanes<C> / 2)>(rows, std::make_index_sequence<static_cast<size_t>(kLanes<C>)>{});
}

// The same from and to memory.
template <class C>
inline void transpose_square(const C* from, int64_t from_step, C* to, int64_t to_step) {
  Lanes<C> rows[kLanes<C>];
  for (int64_t r = 0; r < kLanes<C>; ++r) rows[r] = load_lanes(from + r * from_step);
  transpose<C>(rows);
  for (int64_t r = 0; r < kLanes<C>; ++r) store_lanes<C>(to + r * to_step, rows[r]);
}

// row[count .. stop) = value, in whole vectors: `stop` is a multiple of kLanes.
template <class C>
[[gnu::always_inline]] inline void fill_tail(C* row, int64_t count, int64_t stop, C value) {
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  Mask lane;
  for (int64_t l = 0; l < kLanes<C>; ++l) lane[l] = static_cast<Index>(l);
  for (int64_t i = count / kLanes<C> * kLanes<C>; i < stop; i += kLanes<C>) {
    const Lanes<C> v = load_lanes(row + i);
    store_lanes<C>(row + i, lane < static_cast<Index>(count - i) ? v : Lanes<C>{} + value);
  }
}

}  // namespace rz::cpu
