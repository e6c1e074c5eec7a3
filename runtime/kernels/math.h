// rz::math: one overload set of elementary functions for float and double, for host and device (decision D10).
//
// * float: written here, without branches, so that loops over them vectorize; a few ulp (tests/kernels/math_test.cpp states
//   each bound). Fused multiply-adds are explicit: scalar and vector code of one build give the same bits.
// * double: the standard library's.
// * Special values follow the standard: NaN in, NaN out; log(0) = -inf; exp overflows to inf. sin and cos are accurate for
//   |x| <= 1e6 and lose digits beyond. Polynomials in float: Cephes (S. Moshier), re-arranged for FMA.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define RZ_MATH_FN __host__ __device__ __forceinline__
#else
#define RZ_MATH_FN [[gnu::always_inline]] inline
#endif

namespace rz::math {

// a * b + c with one rounding where the machine has the instruction (a library call would be slow where it does not).
RZ_MATH_FN float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__CUDACC__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
RZ_MATH_FN double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__CUDACC__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

RZ_MATH_FN float abs(float x) { return __builtin_fabsf(x); }
RZ_MATH_FN double abs(double x) { return __builtin_fabs(x); }
RZ_MATH_FN float sqrt(float x) { return __builtin_sqrtf(x); }
RZ_MATH_FN double sqrt(double x) { return __builtin_sqrt(x); }
RZ_MATH_FN float floor(float x) { return __builtin_floorf(x); }
RZ_MATH_FN double floor(double x) { return __builtin_floor(x); }
RZ_MATH_FN float ceil(float x) { return __builtin_ceilf(x); }
RZ_MATH_FN double ceil(double x) { return __builtin_ceil(x); }
RZ_MATH_FN float round_even(float x) { return __builtin_rintf(x); }
RZ_MATH_FN double round_even(double x) { return __builtin_rint(x); }
RZ_MATH_FN float copysign(float x, float sign) { return __builtin_copysignf(x, sign); }
RZ_MATH_FN double copysign(double x, double sign) { return __builtin_copysign(x, sign); }
template <class T>
RZ_MATH_FN T rsqrt(T x) {
  return T(1) / sqrt(x);
}
// NaN when either is NaN, unlike fmax.
template <class T>
RZ_MATH_FN T max(T a, T b) {
  return a > b || a != a ? a : b;
}
template <class T>
RZ_MATH_FN T min(T a, T b) {
  return a < b || a != a ? a : b;
}

namespace detail {

// Adding and subtracting 1.5 * 2^23 rounds a float to an integer, which then stands in the low bits.
inline constexpr float kRound = 12582912.0f;

// x = n ln2 + r with |r| <= ln2 / 2, for |x| < 2^20.
struct Reduced {
  float r;
  int32_t n;
};
RZ_MATH_FN Reduced reduce_ln2(float x) {
  const float t = fma(x, 1.44269504088896341f, kRound);
  const float n = t - kRound;
  const float high = fma(n, -0.693359375f, x);
  return {fma(n, 2.12194440e-4f, high), static_cast<int32_t>(std::bit_cast<uint32_t>(t) - std::bit_cast<uint32_t>(kRound))};
}

// exp(r) - 1 for |r| <= ln2 / 2.
RZ_MATH_FN float expm1_reduced(float r) {
  float p = 1.9875691500e-4f;
  p = fma(p, r, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  return fma(p * r, r, r);
}

// 2^n for -126 <= n <= 127.
RZ_MATH_FN float power_of_two(int32_t n) { return std::bit_cast<float>((static_cast<uint32_t>(n) + 127u) << 23); }

// log(1 + f) for sqrt(1/2) <= 1 + f <= sqrt(2), as a polynomial without its leading f.
RZ_MATH_FN float log1p_tail(float f) {
  float p = 7.0376836292e-2f;
  p = fma(p, f, -1.1514610310e-1f);
  p = fma(p, f, 1.1676998740e-1f);
  p = fma(p, f, -1.2420140846e-1f);
  p = fma(p, f, 1.4249322787e-1f);
  p = fma(p, f, -1.6668057665e-1f);
  p = fma(p, f, 2.0000714765e-1f);
  p = fma(p, f, -2.4999993993e-1f);
  p = fma(p, f, 3.3333331174e-1f);
  const float square = f * f;
  return fma(-0.5f, square, p * f * square);
}

// (sin, cos) of x for |x| <= 1e6: the reduction by pi/2 is done in double.
struct SinCos {
  float sine;
  float cosine;
  uint32_t quadrant;
};
RZ_MATH_FN SinCos sincos_reduced(float x) {
  constexpr double kRound64 = 6755399441055744.0;  // 1.5 * 2^52
  const double wide = static_cast<double>(x);
  const double t = wide * 0.63661977236758134308 + kRound64;
  const double n = t - kRound64;
  const auto r = static_cast<float>((wide - n * 1.5707963267948965580) - n * 6.1232339957367660359e-17);
  const float z = r * r;
  float s = -1.9515295891e-4f;
  s = fma(s, z, 8.3321608736e-3f);
  s = fma(s, z, -1.6666654611e-1f);
  float c = 2.443315711809948e-5f;
  c = fma(c, z, -1.388731625493765e-3f);
  c = fma(c, z, 4.166664568298827e-2f);
  return {fma(s * z, r, r), fma(c * z, z, fma(-0.5f, z, 1.0f)), static_cast<uint32_t>(std::bit_cast<uint64_t>(t))};
}

}  // namespace detail

RZ_MATH_FN float exp(float x) {
  const float low = x < -104.0f ? -104.0f : x;
  const auto [r, n] = detail::reduce_ln2(low > 89.0f ? 89.0f : low);
  const int32_t half = n >> 1;
  return (detail::expm1_reduced(r) + 1.0f) * detail::power_of_two(half) * detail::power_of_two(n - half);
}
inline double exp(double x) { return std::exp(x); }

RZ_MATH_FN float expm1(float x) {
  const float low = x < -30.0f ? -30.0f : x;
  const auto [r, n] = detail::reduce_ln2(low > 89.0f ? 89.0f : low);
  const float p = detail::expm1_reduced(r);
  // 2^n p + (2^n - 1), in halves so that 2^128 does not overflow before its time.
  const float half = detail::power_of_two(n - 1);
  const float y = (fma(half, p, half - 0.5f)) * 2.0f;
  return x == 0.0f ? x : y;
}
inline double expm1(double x) { return std::expm1(x); }

RZ_MATH_FN float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const uint32_t bits = std::bit_cast<uint32_t>(scaled);
  const int32_t e = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;
  const float f = std::bit_cast<float>(bits - (static_cast<uint32_t>(e) << 23)) - 1.0f;
  const float exponent = static_cast<float>(e) - (tiny ? 23.0f : 0.0f);
  const float tail = fma(exponent, -2.12194440e-4f, detail::log1p_tail(f));
  float y = fma(exponent, 0.693359375f, f + tail);
  y = x == std::numeric_limits<float>::infinity() ? x : y;
  y = x == 0.0f ? -std::numeric_limits<float>::infinity() : y;
  return x < 0.0f || x != x ? std::numeric_limits<float>::quiet_NaN() : y;
}
inline double log(double x) { return std::log(x); }

RZ_MATH_FN float log1p(float x) {
  // log(u) for the rounded u = 1 + x, plus what rounding lost: log(u + c) = log(u) + c/u.
  const float u = 1.0f + x;
  const float lost = x >= 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);
  const float y = log(u) + lost / u;
  const float special = u == 0.0f || u == std::numeric_limits<float>::infinity() ? log(u) : y;
  return x == 0.0f ? x : special;
}
inline double log1p(double x) { return std::log1p(x); }

RZ_MATH_FN float tanh(float x) {
  const float magnitude = abs(x);
  // Beyond 9.1 the result rounds to 1.
  const float e = expm1(2.0f * (magnitude > 9.5f ? 9.5f : magnitude));
  return copysign(e / (e + 2.0f), x);
}
inline double tanh(double x) { return std::tanh(x); }

RZ_MATH_FN float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

RZ_MATH_FN float sin(float x) {
  const auto [s, c, q] = detail::sincos_reduced(x);
  const float y = (q & 1u) != 0 ? c : s;
  return (q & 2u) != 0 ? -y : y;
}
inline double sin(double x) { return std::sin(x); }

RZ_MATH_FN float cos(float x) {
  const auto [s, c, q] = detail::sincos_reduced(x);
  const float y = (q & 1u) != 0 ? s : c;
  return ((q + 1u) & 2u) != 0 ? -y : y;
}
inline double cos(double x) { return std::cos(x); }

// A rational approximation in x^2, x clamped where erf rounds to 1 (coefficients: XLA, Apache-2.0).
RZ_MATH_FN float erf(float value) {
  const float high = value > 4.0f ? 4.0f : value;
  const float x = high < -4.0f ? -4.0f : high;
  const float z = x * x;
  float p = -2.72614225801306e-10f;
  p = fma(p, z, 2.77068142495902e-08f);
  p = fma(p, z, -2.10102402082508e-06f);
  p = fma(p, z, -5.69250639462346e-05f);
  p = fma(p, z, -7.34990630326855e-04f);
  p = fma(p, z, -2.95459980854025e-03f);
  p = fma(p, z, -1.60960333262415e-02f);
  float q = -1.45660718464996e-05f;
  q = fma(q, z, -2.13374055278905e-04f);
  q = fma(q, z, -1.68282697438203e-03f);
  q = fma(q, z, -7.37332916720468e-03f);
  q = fma(q, z, -1.42647390514189e-02f);
  // The approximation exceeds 1 by 2e-7 near 4.
  const float y = x * p / q;
  const float low = y > 1.0f ? 1.0f : y;
  return low < -1.0f ? -1.0f : low;
}
inline double erf(double x) { return std::erf(x); }

// In double for both: the relative error of a power in float grows with its logarithm. Not vectorized.
inline float pow(float base, float exponent) {
  return static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
}
inline double pow(double base, double exponent) { return std::pow(base, exponent); }

}  // namespace rz::math
