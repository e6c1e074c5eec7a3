// Elementwise kernels and copies. Inputs may be strided views and broadcast to the output's shape; outputs may be strided
// where a comment says so, else they are contiguous; no output may overlap an input.
// An element's bits do not depend on its position, on strides or on the thread count.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/elementwise_list.h"
#include "runtime/kernels/functors.h"

namespace rz {

#define RZ_NAME(name, ...) name,
enum class UnaryOp : uint8_t { RZ_UNARY_OPS(RZ_NAME) RZ_SCALED_OPS(RZ_NAME) };
enum class BinaryOp : uint8_t { RZ_BINARY_OPS(RZ_NAME) };
enum class CompareOp : uint8_t { RZ_COMPARE_OPS(RZ_NAME) };
#undef RZ_NAME

// Parameters of the scaled unary ops: scale and shift (p0), power (exponent), clamp (low, high), slopes.
struct OpScalars {
  double p0 = 0;
  double p1 = 0;
};

// What an op's gradient reads; for ops that decide what to save.
Keeps keeps(UnaryOp op);
struct BinaryTraits {
  unsigned a_reads = 0;  // Reads flags
  unsigned b_reads = 0;
  bool same_gradient = false;
};
BinaryTraits traits(BinaryOp op);
const char* name(UnaryOp op);
const char* name(BinaryOp op);

class ElementwiseKernels {
 public:
  virtual ~ElementwiseKernels() = default;

  // `out` may be strided.
  virtual void fill(Tensor& out, double value) = 0;
  // out = x, converting types; both may be strided views of the same shape.
  virtual void copy(const Tensor& x, Tensor& out) = 0;
  // out = x, or out += x when accumulate; same shape; converts to out's type (sums in its compute type). `out` may be strided.
  virtual void add_into(const Tensor& x, Tensor& out, bool accumulate) = 0;

  // out = op(x), of x's shape and type.
  virtual void unary(UnaryOp op, const Tensor& x, Tensor& out, OpScalars scalars = {}) = 0;
  // out (+)= grad * op'(.). `kept` is the input or the output of op, undefined where keeps(op) is nothing.
  virtual void unary_gradient(UnaryOp op, const Tensor& grad, const Tensor& kept, Tensor& out, bool accumulate, OpScalars scalars = {}) = 0;

  // out = op(a, b), `out` of the shape to which a and b broadcast.
  virtual void binary(BinaryOp op, const Tensor& a, const Tensor& b, Tensor& out) = 0;
  // The gradient with respect to a (input 0) or b (input 1) before broadcasting is undone: `out` has grad's shape. An input that
  // the gradient does not read may be undefined.
  virtual void binary_gradient(BinaryOp op, int input, const Tensor& grad, const Tensor& a, const Tensor& b, Tensor& out,
                               bool accumulate) = 0;

  // out (u8) = a op b ? 1 : 0.
  virtual void compare(CompareOp op, const Tensor& a, const Tensor& b, Tensor& out) = 0;
  // out (+)= condition (u8) ? a : b.
  virtual void where(const Tensor& condition, const Tensor& a, const Tensor& b, Tensor& out, bool accumulate = false) = 0;

  // out[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`; index (i32 or i64) has out's shape and equals x's except along `dim`.
  virtual void gather(const Tensor& x, int dim, const Tensor& index, Tensor& out) = 0;
  // out[.., index[.., i, ..], ..] += x[.., i, ..] along `dim`, in order of i: the same bits for any thread count.
  virtual void scatter_add(const Tensor& x, int dim, const Tensor& index, Tensor& out) = 0;
};

}  // namespace rz
