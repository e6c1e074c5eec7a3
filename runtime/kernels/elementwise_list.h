// The list of elementwise operations: one line per operation makes its CPU loop, its op with gradient and its tests.
// The functors are in functors.h. To add an operation: write a functor there, add a line here.
//
//   RZ_UNARY_*:     X(name, Functor, low, high)  tests draw the input from [low, high]
//   RZ_SCALED_OPS:  the same for unary operations with up to two parameters
//   RZ_BINARY_OPS:  the same for two operands, with broadcasting
//   RZ_COMPARE_OPS: X(name, operator)  result u8, no gradient
// The groups only split the compilation.
#pragma once

#define RZ_UNARY_SIMPLE(X)          \
  X(neg, Neg, -2, 2)                \
  X(abs, Abs, 0.1, 2)               \
  X(sign, Sign, 0.1, 2)             \
  X(floor, Floor, 0.1, 0.9)         \
  X(round, Round, -0.4, 0.4)        \
  X(sqrt, Sqrt, 0.2, 4)             \
  X(rsqrt, Rsqrt, 0.2, 4)           \
  X(square, Square, -2, 2)          \
  X(reciprocal, Reciprocal, 0.3, 3) \
  X(relu, Relu, 0.1, 2)             \
  X(relu_squared, ReluSquared, -2, 2)

#define RZ_UNARY_EXPONENTIAL(X) \
  X(exp, Exp, -3, 3)            \
  X(expm1, Expm1, -3, 3)        \
  X(log, Log, 0.2, 4)           \
  X(log1p, Log1p, -0.7, 4)      \
  X(sin, Sin, -4, 4)            \
  X(cos, Cos, -4, 4)            \
  X(tanh, Tanh, -3, 3)          \
  X(erf, Erf, -3, 3)

#define RZ_UNARY_ACTIVATION(X)      \
  X(sigmoid, Sigmoid, -4, 4)        \
  X(log_sigmoid, LogSigmoid, -4, 4) \
  X(silu, Silu, -4, 4)              \
  X(softplus, Softplus, -4, 4)      \
  X(gelu, Gelu, -4, 4)              \
  X(gelu_erf, GeluErf, -4, 4)

#define RZ_SCALED_OPS(X)          \
  X(scale, Scale, -2, 2)          \
  X(shift, Shift, -2, 2)          \
  X(power, Power, 0.3, 3)         \
  X(clamp, Clamp, -2, 2)          \
  X(leaky_relu, LeakyRelu, -2, 2) \
  X(elu, Elu, -2, 2)

#define RZ_UNARY_OPS(X) RZ_UNARY_SIMPLE(X) RZ_UNARY_EXPONENTIAL(X) RZ_UNARY_ACTIVATION(X)

#define RZ_BINARY_OPS(X)               \
  X(add, Add, -2, 2)                   \
  X(sub, Sub, -2, 2)                   \
  X(mul, Mul, -2, 2)                   \
  X(div, Div, 0.4, 2)                  \
  X(pow, Pow, 0.4, 2)                  \
  X(maximum, Maximum, -2, 2)           \
  X(minimum, Minimum, -2, 2)           \
  X(bias_gelu, BiasGelu, -2, 2)        \
  X(bias_gelu_erf, BiasGeluErf, -2, 2) \
  X(silu_mul, SiluMul, -2, 2)

#define RZ_COMPARE_OPS(X) \
  X(eq, ==)               \
  X(ne, !=)               \
  X(lt, <)                \
  X(le, <=)               \
  X(gt, >)                \
  X(ge, >=)
