#include "runtime/ops/elementwise.h"

#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"

namespace rz::ops {

using autograd::InputGradients;
using autograd::Saved;

namespace {

Tensor unary(UnaryOp op, const Tensor& x, OpScalars scalars = {}) {
  RZ_CHECK(is_floating(x.dtype()), "{} needs a floating-point tensor, not {}", name(op), x.str());
  Tensor y = Tensor::empty(x.shape(), x.dtype(), name(op));
  backend(x.device()).elementwise->unary(op, x, y, scalars);
  if (!autograd::needs_grad({x})) return y;
  if (op == UnaryOp::shift) return autograd::record(name(op), y, {x}, [](const Tensor& grad, InputGradients& in) { in.add(0, grad); });
  Saved kept;
  if (keeps(op) == Keeps::input) kept = Saved(x);
  if (keeps(op) == Keeps::output) kept = Saved(y);
  return autograd::record(name(op), y, {x}, [op, kept, scalars](const Tensor& grad, InputGradients& in) {
    in.into(0, [&](Tensor& out, bool accumulate) {
      backend(grad.device())
          .elementwise->unary_gradient(op, grad, keeps(op) == Keeps::nothing ? Tensor() : kept.get(), out, accumulate, scalars);
    });
  });
}

// Gives input i the gradient `full`, which has the output's shape.
void give_summed(InputGradients& in, size_t i, const Shape& shape, const Tensor& full) {
  if (full.shape() == shape) return in.add(i, full);
  in.into(i, [&](Tensor& out, bool accumulate) { backend(full.device()).reduction->sum_to_shape(full, out, accumulate); });
}

Tensor binary(BinaryOp op, const Tensor& a, const Tensor& b) {
  RZ_CHECK(a.dtype() == b.dtype() && is_floating(a.dtype()), "{} needs two tensors of one floating-point type, got {} and {}", name(op),
           a.str(), b.str());
  Tensor y = Tensor::empty(broadcast_shapes(a.shape(), b.shape(), name(op)), a.dtype(), name(op));
  backend(a.device()).elementwise->binary(op, a, b, y);
  if (!autograd::needs_grad({a, b})) return y;

  const BinaryTraits reads = traits(op);
  const unsigned kept = (autograd::needs_grad({a}) ? reads.a_reads : 0u) | (autograd::needs_grad({b}) ? reads.b_reads : 0u);
  const Saved saved_a = kept & kReadsA ? Saved(a) : Saved();
  const Saved saved_b = kept & kReadsB ? Saved(b) : Saved();
  return autograd::record(name(op), y, {a, b}, [=, shape_a = a.shape(), shape_b = b.shape()](const Tensor& grad, InputGradients& in) {
    auto& kernels = *backend(grad.device()).elementwise;
    const Tensor kept_a = kept & kReadsA ? saved_a.get() : Tensor();
    const Tensor kept_b = kept & kReadsB ? saved_b.get() : Tensor();
    const Shape* shapes[] = {&shape_a, &shape_b};
    Tensor shared;  // the gradient of both inputs before broadcasting is undone
    if (reads.same_gradient && reads.a_reads == kReadsNothing) {
      shared = grad;
    } else if (reads.same_gradient) {
      shared = Tensor::empty(grad.shape(), grad.dtype(), name(op));
      kernels.binary_gradient(op, 0, grad, kept_a, kept_b, shared, false);
    }
    for (int i = 0; i < 2; ++i) {
      const auto u = static_cast<size_t>(i);
      if (!in.wants(u)) continue;
      if (shared.defined()) {
        give_summed(in, u, *shapes[u], shared);
      } else if ((i == 0 ? reads.a_reads : reads.b_reads) == kReadsNothing && op == BinaryOp::sub && i == 0) {
        give_summed(in, u, *shapes[u], grad);
      } else if (*shapes[u] == grad.shape()) {
        in.into(u, [&](Tensor& out, bool accumulate) { kernels.binary_gradient(op, i, grad, kept_a, kept_b, out, accumulate); });
      } else {
        Tensor full = Tensor::empty(grad.shape(), grad.dtype(), Category::workspace, name(op));
        kernels.binary_gradient(op, i, grad, kept_a, kept_b, full, false);
        give_summed(in, u, *shapes[u], full);
      }
    }
  });
}

Tensor compare(CompareOp op, const Tensor& a, const Tensor& b) {
  Tensor y = Tensor::empty(broadcast_shapes(a.shape(), b.shape(), "a comparison"), DType::u8, "comparison");
  backend(a.device()).elementwise->compare(op, a, b, y);
  return y;
}

}  // namespace

#define RZ_DEFINE(name, ...) \
  Tensor name(const Tensor& x) { return unary(UnaryOp::name, x); }
RZ_UNARY_OPS(RZ_DEFINE)
#undef RZ_DEFINE
#define RZ_DEFINE(name, ...) \
  Tensor name(const Tensor& a, const Tensor& b) { return binary(BinaryOp::name, a, b); }
RZ_BINARY_OPS(RZ_DEFINE)
#undef RZ_DEFINE
#define RZ_DEFINE(name, ...) \
  Tensor name(const Tensor& a, const Tensor& b) { return compare(CompareOp::name, a, b); }
RZ_COMPARE_OPS(RZ_DEFINE)
#undef RZ_DEFINE

Tensor scale(const Tensor& x, double factor) { return unary(UnaryOp::scale, x, {factor, 0}); }
Tensor shift(const Tensor& x, double amount) { return unary(UnaryOp::shift, x, {amount, 0}); }
Tensor clamp(const Tensor& x, double low, double high) { return unary(UnaryOp::clamp, x, {low, high}); }
Tensor leaky_relu(const Tensor& x, double slope) { return unary(UnaryOp::leaky_relu, x, {slope, 0}); }
Tensor elu(const Tensor& x, double alpha) { return unary(UnaryOp::elu, x, {alpha, 0}); }
Tensor power(const Tensor& x, double exponent) {
  if (exponent == 2.0) return square(x);
  if (exponent == 0.5) return sqrt(x);
  if (exponent == -0.5) return rsqrt(x);
  if (exponent == -1.0) return reciprocal(x);
  return unary(UnaryOp::power, x, {exponent, 0});
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  RZ_CHECK(a.dtype() == b.dtype(), "where needs one element type, got {} and {}", a.str(), b.str());
  Tensor y =
      Tensor::empty(broadcast_shapes(condition.shape(), broadcast_shapes(a.shape(), b.shape(), "where"), "where"), a.dtype(), "where");
  backend(a.device()).elementwise->where(condition, a, b, y);
  if (!autograd::needs_grad({a, b})) return y;
  return autograd::record(
      "where", y, {a, b}, [saved = Saved(condition), shape_a = a.shape(), shape_b = b.shape()](const Tensor& grad, InputGradients& in) {
        auto& kernels = *backend(grad.device()).elementwise;
        const Tensor zero = Tensor::full({}, 0, grad.dtype(), "zero");
        for (const size_t i : {size_t{0}, size_t{1}}) {
          if (!in.wants(i)) continue;
          const Tensor& if_true = i == 0 ? grad : zero;
          const Tensor& if_false = i == 0 ? zero : grad;
          const Shape& shape = i == 0 ? shape_a : shape_b;
          if (shape == grad.shape()) {
            in.into(i, [&](Tensor& out, bool accumulate) { kernels.where(saved.get(), if_true, if_false, out, accumulate); });
          } else {
            Tensor full = Tensor::empty(grad.shape(), grad.dtype(), Category::workspace, "where");
            kernels.where(saved.get(), if_true, if_false, full);
            give_summed(in, i, shape, full);
          }
        }
      });
}

Tensor masked_fill(const Tensor& x, const Tensor& mask, double value) {
  return where(mask, Tensor::full({}, value, x.dtype(), "masked_fill value"), x);
}

}  // namespace rz::ops
