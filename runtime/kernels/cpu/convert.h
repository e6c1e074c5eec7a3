// Runs of elements to and from the type in which kernels compute. Strides are in elements; a stride of 0 repeats one element.
#pragma once

#include <algorithm>
#include <cstring>

#include "runtime/core/dtype.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace rz::cpu {

// to[i] = from[i * stride] for i < n. C is float or double.
template <class T, class C>
inline void load_run(const T* from, int64_t stride, C* __restrict to, int64_t n) {
  if (stride == 0) {
    std::fill_n(to, n, static_cast<C>(static_cast<compute_t<T>>(*from)));
  } else if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<C>(static_cast<compute_t<T>>(from[i * stride]));
  } else if constexpr (std::is_same_v<T, C>) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  } else {
    int64_t i = 0;
#ifdef __F16C__
    if constexpr (std::is_same_v<T, f16> && std::is_same_v<C, float>)
      for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < n; ++i) to[i] = static_cast<C>(static_cast<compute_t<T>>(from[i]));
  }
}

// to[i * stride] = from[i], or += when accumulate (added in C, rounded once).
template <class C, class T>
inline void store_run(const C* __restrict from, T* to, int64_t stride, int64_t n, bool accumulate) {
  using Wide = compute_t<T>;
  if (accumulate) {
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<Wide>(static_cast<C>(static_cast<Wide>(to[i])) + from[i]));
    else
      for (int64_t i = 0; i < n; ++i) {
        T& at = to[i * stride];
        at = static_cast<T>(static_cast<Wide>(static_cast<C>(static_cast<Wide>(at)) + from[i]));
      }
  } else if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = static_cast<T>(static_cast<Wide>(from[i]));
  } else if constexpr (std::is_same_v<T, C>) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  } else {
    int64_t i = 0;
#ifdef __F16C__
    if constexpr (std::is_same_v<T, f16> && std::is_same_v<C, float>)
      for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; ++i) to[i] = static_cast<T>(static_cast<Wide>(from[i]));
  }
}

}  // namespace rz::cpu
