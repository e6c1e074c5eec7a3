// Runs one loop over tensors of any strides and types. A loop is a plain function over contiguous runs of float or double; it
// is instantiated once per functor and type, while strides, broadcasting, 16-bit types and accumulation are handled here.
//
// * Loops are called with multiples of kLoopMultiple elements only; remainders go through padded buffers. So every element is
//   computed by the same vector code, wherever it lies.
// * Operands that are not contiguous in the type of the computation pass through blocks that fit in the L1 cache.
#pragma once

#include <span>

#include "runtime/kernels/elementwise.h"

namespace rz::cpu {

inline constexpr int64_t kLoopMultiple = 64;

// out[i] = f(a[i], b[i], c[i]; p0, p1) for i < n, n a multiple of kLoopMultiple. Unused operands are null.
template <class C>
using Loop = void (*)(const C* a, const C* b, const C* c, C* out, int64_t n, C p0, C p1);

struct Loops {
  Loop<float> f32 = nullptr;
  Loop<double> f64 = nullptr;
};

// out (+)= loop(inputs...), inputs broadcast to out's shape; `out` may be strided. Computes in float unless a tensor is f64, i32
// or i64: then in double.
void run_elementwise(const Loops& loops, std::span<const Tensor* const> inputs, Tensor& out, bool accumulate, OpScalars scalars = {});

// Per functor: the loops of value and gradient.
struct UnaryLoops {
  Loops value;     // a = x
  Loops gradient;  // a = grad, b = kept
};
struct BinaryLoops {
  Loops value;   // a, b
  Loops grad_a;  // a = grad, b = a, c = b
  Loops grad_b;
};

// The tables, each in a file of its own; indexed by position within the group.
const UnaryLoops* simple_loops();
const UnaryLoops* exponential_loops();
const UnaryLoops* activation_loops();
const UnaryLoops* scaled_loops();
const BinaryLoops* binary_loops();
const Loops* compare_loops();
const Loops& identity_loops();
const Loops& where_loops();

// Building blocks of the tables. An operand that is absent (null) reads as another one, which its functor ignores.
template <class F, class C>
void unary_value_loop(const C* __restrict a, const C*, const C*, C* __restrict out, int64_t n, C p0, C p1) {
  n = n / kLoopMultiple * kLoopMultiple;
  const functors::Parameters<C> p{p0, p1};
  for (int64_t i = 0; i < n; ++i) out[i] = F::template value<C>(a[i], p);
}
template <class F, class C>
void unary_gradient_loop(const C* __restrict a, const C* __restrict b, const C*, C* __restrict out, int64_t n, C p0, C p1) {
  n = n / kLoopMultiple * kLoopMultiple;
  const functors::Parameters<C> p{p0, p1};
  for (int64_t i = 0; i < n; ++i) out[i] = F::template gradient<C>(a[i], b[i], p);
}
template <class F>
constexpr UnaryLoops make_unary_loops() {
  return {{unary_value_loop<F, float>, unary_value_loop<F, double>}, {unary_gradient_loop<F, float>, unary_gradient_loop<F, double>}};
}

}  // namespace rz::cpu
