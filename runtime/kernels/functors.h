// Elementwise functors: value, gradient, and what the tape must keep for it (decision D10). Shared by every backend.
//
// * value(x, p): T is float or double (16-bit types are computed in float); p holds the parameters of ops that have some.
// * gradient(g, kept, p): g times the derivative; `kept` is the op's input or its output, as `keeps` says.
// * Binary: value(a, b), grad_a(g, a, b), grad_b(g, a, b); `a_reads`, `b_reads` say which inputs each gradient reads, and only
//   those are kept. `same_gradient`: both gradients are equal before broadcasting is undone.
// At a kink the gradient is the one of the flat side (relu'(0) = 0); maximum and minimum share it equally on ties.
#pragma once

#include "runtime/kernels/math.h"

namespace rz {

enum class Keeps { nothing, input, output };
// Which inputs of a binary op a gradient reads.
enum Reads : unsigned { kReadsNothing = 0, kReadsA = 1, kReadsB = 2, kReadsBoth = 3 };

namespace functors {

template <class T>
struct Parameters {
  T p0, p1;
};

#define RZ_VALUE     \
  template <class T> \
  RZ_MATH_FN static T value(T x, [[maybe_unused]] Parameters<T> p)
#define RZ_GRADIENT(kept) \
  template <class T>      \
  RZ_MATH_FN static T gradient(T g, [[maybe_unused]] T kept, [[maybe_unused]] Parameters<T> p)

struct Neg {
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return -x; }
  RZ_GRADIENT(x) { return -g; }
};
struct Abs {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::abs(x); }
  RZ_GRADIENT(x) { return x > T(0) ? g : (x < T(0) ? -g : T(0)); }
};
struct Sign {
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x); }
  RZ_GRADIENT(x) { return g * T(0); }
};
struct Floor {
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return math::floor(x); }
  RZ_GRADIENT(x) { return g * T(0); }
};
struct Round {  // to the nearest integer, ties to even
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return math::round_even(x); }
  RZ_GRADIENT(x) { return g * T(0); }
};
struct Sqrt {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::sqrt(x); }
  RZ_GRADIENT(y) { return g * T(0.5) / y; }
};
struct Rsqrt {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::rsqrt(x); }
  RZ_GRADIENT(y) { return g * T(-0.5) * y * y * y; }
};
struct Square {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x * x; }
  RZ_GRADIENT(x) { return g * (x + x); }
};
struct Reciprocal {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return T(1) / x; }
  RZ_GRADIENT(y) { return -g * y * y; }
};
struct Relu {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return x < T(0) ? T(0) : x; }
  RZ_GRADIENT(y) { return y > T(0) ? g : T(0); }
};
struct ReluSquared {  // So et al. 2021, "Primer"
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x < T(0) ? T(0) : x * x; }
  RZ_GRADIENT(x) { return x > T(0) ? g * (x + x) : T(0); }
};

struct Exp {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::exp(x); }
  RZ_GRADIENT(y) { return g * y; }
};
struct Expm1 {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::expm1(x); }
  RZ_GRADIENT(y) { return g * (y + T(1)); }
};
struct Log {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::log(x); }
  RZ_GRADIENT(x) { return g / x; }
};
struct Log1p {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::log1p(x); }
  RZ_GRADIENT(x) { return g / (x + T(1)); }
};
struct Sin {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::sin(x); }
  RZ_GRADIENT(x) { return g * math::cos(x); }
};
struct Cos {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::cos(x); }
  RZ_GRADIENT(x) { return -g * math::sin(x); }
};
struct Tanh {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::tanh(x); }
  RZ_GRADIENT(y) { return g * (T(1) - y * y); }
};
struct Erf {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::erf(x); }
  RZ_GRADIENT(x) { return g * T(1.12837916709551257) * math::exp(-x * x); }  // 2 / sqrt(pi)
};

struct Sigmoid {
  static constexpr Keeps keeps = Keeps::output;
  RZ_VALUE { return math::sigmoid(x); }
  RZ_GRADIENT(y) { return g * y * (T(1) - y); }
};
struct Softplus {  // log(1 + e^x), without overflow
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return (x < T(0) ? T(0) : x) + math::log1p(math::exp(-math::abs(x))); }
  RZ_GRADIENT(x) { return g * math::sigmoid(x); }
};
struct LogSigmoid {  // -softplus(-x)
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return (x > T(0) ? T(0) : x) - math::log1p(math::exp(-math::abs(x))); }
  RZ_GRADIENT(x) { return g * math::sigmoid(-x); }
};
struct Silu {  // x sigmoid(x)
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x * math::sigmoid(x); }
  RZ_GRADIENT(x) {
    const T s = math::sigmoid(x);
    return g * s * math::fma(x, T(1) - s, T(1));
  }
};
// GELU with the tanh approximation (Hendrycks and Gimpel 2016): x/2 (1 + tanh(u)) = x sigmoid(2u),
// u = sqrt(2/pi) (x + 0.044715 x^3); the second form keeps its digits where tanh is close to -1.
struct Gelu {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE {
    const T inner = x * math::fma(x * x, T(0.0713548162726009), T(1.5957691216057308));  // 2u
    return x * math::sigmoid(inner);
  }
  RZ_GRADIENT(x) {
    const T square = x * x;
    const T s = math::sigmoid(x * math::fma(square, T(0.0713548162726009), T(1.5957691216057308)));
    const T slope = math::fma(square, T(0.2140644488178027), T(1.5957691216057308));  // d(2u)/dx
    return g * s * math::fma(x * slope, T(1) - s, T(1));
  }
};
struct GeluErf {  // x/2 (1 + erf(x / sqrt 2))
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return T(0.5) * x * (T(1) + math::erf(x * T(0.70710678118654752))); }
  RZ_GRADIENT(x) {
    const T cumulative = T(0.5) * (T(1) + math::erf(x * T(0.70710678118654752)));
    const T density = T(0.39894228040143268) * math::exp(T(-0.5) * x * x);
    return g * math::fma(x, density, cumulative);
  }
};

struct Scale {
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return x * p.p0; }
  RZ_GRADIENT(x) { return g * p.p0; }
};
struct Shift {
  static constexpr Keeps keeps = Keeps::nothing;
  RZ_VALUE { return x + p.p0; }
  RZ_GRADIENT(x) { return g; }
};
struct Power {
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return math::pow(x, p.p0); }
  RZ_GRADIENT(x) { return p.p0 == T(0) ? T(0) : g * p.p0 * math::pow(x, p.p0 - T(1)); }
};
struct Clamp {  // to [p0, p1]
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x < p.p0 ? p.p0 : (x > p.p1 ? p.p1 : x); }
  RZ_GRADIENT(x) { return x < p.p0 || x > p.p1 ? T(0) : g; }
};
struct LeakyRelu {  // p0: slope of the negative side
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x < T(0) ? p.p0 * x : x; }
  RZ_GRADIENT(x) { return x > T(0) ? g : p.p0 * g; }
};
struct Elu {  // p0 (e^x - 1) on the negative side
  static constexpr Keeps keeps = Keeps::input;
  RZ_VALUE { return x < T(0) ? p.p0 * math::expm1(x) : x; }
  RZ_GRADIENT(x) { return x < T(0) ? g * p.p0 * math::exp(x) : g; }
};

#undef RZ_VALUE
#undef RZ_GRADIENT
#define RZ_VALUE     \
  template <class T> \
  RZ_MATH_FN static T value(T a, T b)
#define RZ_GRAD_A    \
  template <class T> \
  RZ_MATH_FN static T grad_a(T g, [[maybe_unused]] T a, [[maybe_unused]] T b)
#define RZ_GRAD_B    \
  template <class T> \
  RZ_MATH_FN static T grad_b(T g, [[maybe_unused]] T a, [[maybe_unused]] T b)

struct Add {
  static constexpr Reads a_reads = kReadsNothing, b_reads = kReadsNothing;
  static constexpr bool same_gradient = true;
  RZ_VALUE { return a + b; }
  RZ_GRAD_A { return g; }
  RZ_GRAD_B { return g; }
};
struct Sub {
  static constexpr Reads a_reads = kReadsNothing, b_reads = kReadsNothing;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return a - b; }
  RZ_GRAD_A { return g; }
  RZ_GRAD_B { return -g; }
};
struct Mul {
  static constexpr Reads a_reads = kReadsB, b_reads = kReadsA;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return a * b; }
  RZ_GRAD_A { return g * b; }
  RZ_GRAD_B { return g * a; }
};
struct Div {
  static constexpr Reads a_reads = kReadsB, b_reads = kReadsBoth;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return a / b; }
  RZ_GRAD_A { return g / b; }
  RZ_GRAD_B { return -g * a / (b * b); }
};
struct Pow {
  static constexpr Reads a_reads = kReadsBoth, b_reads = kReadsBoth;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return math::pow(a, b); }
  RZ_GRAD_A { return b == T(0) ? T(0) : g * b * math::pow(a, b - T(1)); }
  RZ_GRAD_B { return a == T(0) ? T(0) : g * math::pow(a, b) * math::log(a); }
};
struct Maximum {
  static constexpr Reads a_reads = kReadsBoth, b_reads = kReadsBoth;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return math::max(a, b); }
  RZ_GRAD_A { return a > b ? g : (a == b ? T(0.5) * g : T(0)); }
  RZ_GRAD_B { return b > a ? g : (a == b ? T(0.5) * g : T(0)); }
};
struct Minimum {
  static constexpr Reads a_reads = kReadsBoth, b_reads = kReadsBoth;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return math::min(a, b); }
  RZ_GRAD_A { return a < b ? g : (a == b ? T(0.5) * g : T(0)); }
  RZ_GRAD_B { return b < a ? g : (a == b ? T(0.5) * g : T(0)); }
};
// gelu(a + b): a projection's output and its bias in one pass.
template <class Activation>
struct BiasActivation {
  static constexpr Reads a_reads = kReadsBoth, b_reads = kReadsBoth;
  static constexpr bool same_gradient = true;
  RZ_VALUE { return Activation::value(a + b, Parameters<T>{}); }
  RZ_GRAD_A { return Activation::gradient(g, a + b, Parameters<T>{}); }
  RZ_GRAD_B { return Activation::gradient(g, a + b, Parameters<T>{}); }
};
using BiasGelu = BiasActivation<Gelu>;
using BiasGeluErf = BiasActivation<GeluErf>;
// silu(a) * b: the gated unit of SwiGLU (Shazeer 2020); a = gate, b = up.
struct SiluMul {
  static constexpr Reads a_reads = kReadsBoth, b_reads = kReadsA;
  static constexpr bool same_gradient = false;
  RZ_VALUE { return a * math::sigmoid(a) * b; }
  RZ_GRAD_A { return Silu::gradient(g * b, a, Parameters<T>{}); }
  RZ_GRAD_B { return g * a * math::sigmoid(a); }
};

#undef RZ_VALUE
#undef RZ_GRAD_A
#undef RZ_GRAD_B

}  // namespace functors
}  // namespace rz
