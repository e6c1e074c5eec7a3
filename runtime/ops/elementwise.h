// Differentiable elementwise operations. Made from the list in kernels/elementwise_list.h; docs/adding-things.md shows how to add one.
// Binary operations broadcast (NumPy's rule) and need one element type on both sides.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/elementwise.h"

namespace rz::ops {

// exp(x), tanh(x), gelu(x) (tanh form), gelu_erf(x), silu(x), ...: every unary operation of the list.
#define RZ_DECLARE(name, ...) Tensor name(const Tensor& x);
RZ_UNARY_OPS(RZ_DECLARE)
#undef RZ_DECLARE

// add(a, b), maximum(a, b), ...: every binary operation of the list. Fused ones: bias_gelu(x, bias) = gelu(x + bias),
// silu_mul(gate, up) = silu(gate) * up.
#define RZ_DECLARE(name, ...) Tensor name(const Tensor& a, const Tensor& b);
RZ_BINARY_OPS(RZ_DECLARE)
#undef RZ_DECLARE

// eq(a, b), lt(a, b), ...: u8 tensors of 0 and 1; no gradient.
#define RZ_DECLARE(name, ...) Tensor name(const Tensor& a, const Tensor& b);
RZ_COMPARE_OPS(RZ_DECLARE)
#undef RZ_DECLARE

// x * factor, x + amount, x ^ exponent (2, 0.5, -1 and -0.5 take the special functions).
Tensor scale(const Tensor& x, double factor);
Tensor shift(const Tensor& x, double amount);
Tensor power(const Tensor& x, double exponent);
Tensor clamp(const Tensor& x, double low, double high);
Tensor leaky_relu(const Tensor& x, double slope = 0.01);
Tensor elu(const Tensor& x, double alpha = 1.0);
inline Tensor add(const Tensor& x, double amount) { return shift(x, amount); }
inline Tensor sub(const Tensor& x, double amount) { return shift(x, -amount); }
inline Tensor mul(const Tensor& x, double factor) { return scale(x, factor); }
inline Tensor div(const Tensor& x, double divisor) { return scale(x, 1.0 / divisor); }
inline Tensor pow(const Tensor& x, double exponent) { return power(x, exponent); }

// condition (u8) ? a : b, all three broadcasting.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
// x with `value` where mask (u8) is not 0; the mask broadcasts to x.
Tensor masked_fill(const Tensor& x, const Tensor& mask, double value);

}  // namespace rz::ops
