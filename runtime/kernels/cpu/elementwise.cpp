// The elementwise family: looks up the loops of an op and runs them.
#include "runtime/kernels/elementwise.h"

#include <algorithm>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/elementwise_copy.h"
#include "runtime/kernels/cpu/elementwise_driver.h"
#include "runtime/kernels/cpu/elementwise_gather.h"

namespace rz {

namespace {
struct UnaryInfo {
  const char* name;
  Keeps keeps;
};
#define RZ_ROW(name, Functor, ...) UnaryInfo{#name, functors::Functor::keeps},
constexpr UnaryInfo kUnary[] = {RZ_UNARY_OPS(RZ_ROW) RZ_SCALED_OPS(RZ_ROW)};
#undef RZ_ROW

struct BinaryInfo {
  const char* name;
  BinaryTraits traits;
};
#define RZ_ROW(name, Functor, ...) \
  BinaryInfo{#name, {functors::Functor::a_reads, functors::Functor::b_reads, functors::Functor::same_gradient}},
constexpr BinaryInfo kBinary[] = {RZ_BINARY_OPS(RZ_ROW)};
#undef RZ_ROW

#define RZ_ONE(...) +1
constexpr size_t kSimple = 0 RZ_UNARY_SIMPLE(RZ_ONE);
constexpr size_t kExponential = 0 RZ_UNARY_EXPONENTIAL(RZ_ONE);
constexpr size_t kActivation = 0 RZ_UNARY_ACTIVATION(RZ_ONE);
#undef RZ_ONE
}  // namespace

Keeps keeps(UnaryOp op) { return kUnary[static_cast<size_t>(op)].keeps; }
const char* name(UnaryOp op) { return kUnary[static_cast<size_t>(op)].name; }
BinaryTraits traits(BinaryOp op) { return kBinary[static_cast<size_t>(op)].traits; }
const char* name(BinaryOp op) { return kBinary[static_cast<size_t>(op)].name; }

namespace cpu {

namespace {

const UnaryLoops& loops_of(UnaryOp op) {
  auto i = static_cast<size_t>(op);
  if (i < kSimple) return simple_loops()[i];
  i -= kSimple;
  if (i < kExponential) return exponential_loops()[i];
  i -= kExponential;
  if (i < kActivation) return activation_loops()[i];
  return scaled_loops()[i - kActivation];
}

void check_shape(const char* what, const Tensor& x, const Tensor& out) {
  RZ_CHECK(x.shape() == out.shape(), "{}: {} does not fit an output of {}", what, x.str(), out.str());
}

class CpuElementwiseKernels final : public ElementwiseKernels {
 public:
  void fill(Tensor& out, double value) override {
    if (out.is_contiguous()) {
      dispatch(out.dtype(), [&](auto tag) {
        using T = typename decltype(tag)::type;
        T* to = out.numel() == 0 ? nullptr : out.data<T>();
        const T element = static_cast<T>(static_cast<compute_t<T>>(value));
        parallel_for(out.numel(), 32768, [&](int64_t begin, int64_t end) { std::fill(to + begin, to + end, element); });
      });
    } else {
      const Tensor one = Tensor::full({}, value, out.dtype(), "fill value");
      copy_same_type(one.view_broadcast(out.shape()), out);
    }
    out.bump_version();
  }

  void copy(const Tensor& x, Tensor& out) override {
    check_shape("copy", x, out);
    if (x.dtype() == out.dtype())
      copy_same_type(x, out);
    else
      run(identity_loops(), {&x}, out, false);
    out.bump_version();
  }

  void add_into(const Tensor& x, Tensor& out, bool accumulate) override {
    if (!accumulate) return copy(x, out);
    check_shape("add_into", x, out);
    run(identity_loops(), {&x}, out, true);
    out.bump_version();
  }

  void unary(UnaryOp op, const Tensor& x, Tensor& out, OpScalars scalars) override {
    check_shape(rz::name(op), x, out);
    run(loops_of(op).value, {&x}, out, false, scalars);
  }

  void unary_gradient(UnaryOp op, const Tensor& grad, const Tensor& kept, Tensor& out, bool accumulate, OpScalars scalars) override {
    check_shape(rz::name(op), grad, out);
    RZ_CHECK(kept.defined() || keeps(op) == Keeps::nothing, "{}: its gradient needs the {}", rz::name(op),
             keeps(op) == Keeps::input ? "input" : "output");
    run(loops_of(op).gradient, {&grad, kept.defined() ? &kept : &grad}, out, accumulate, scalars);
  }

  void binary(BinaryOp op, const Tensor& a, const Tensor& b, Tensor& out) override {
    run(binary_loops()[static_cast<size_t>(op)].value, {&a, &b}, out, false);
  }

  void binary_gradient(BinaryOp op, int input, const Tensor& grad, const Tensor& a, const Tensor& b, Tensor& out,
                       bool accumulate) override {
    check_shape(rz::name(op), grad, out);
    const BinaryLoops& loops = binary_loops()[static_cast<size_t>(op)];
    const unsigned reads = input == 0 ? traits(op).a_reads : traits(op).b_reads;
    RZ_CHECK((a.defined() || !(reads & kReadsA)) && (b.defined() || !(reads & kReadsB)),
             "{}: the gradient of input {} reads an input that was not kept", rz::name(op), input);
    run(input == 0 ? loops.grad_a : loops.grad_b,
        {&grad, a.defined() && (reads & kReadsA) ? &a : &grad, b.defined() && (reads & kReadsB) ? &b : &grad}, out, accumulate);
  }

  void compare(CompareOp op, const Tensor& a, const Tensor& b, Tensor& out) override {
    RZ_CHECK(out.dtype() == DType::u8, "a comparison yields u8, not {}", out.str());
    run(compare_loops()[static_cast<size_t>(op)], {&a, &b}, out, false);
  }

  void where(const Tensor& condition, const Tensor& a, const Tensor& b, Tensor& out, bool accumulate) override {
    RZ_CHECK(condition.dtype() == DType::u8, "where: the condition must be u8, not {}", condition.str());
    run(where_loops(), {&condition, &a, &b}, out, accumulate);
  }

  void gather(const Tensor& x, int dim, const Tensor& index, Tensor& out) override { gather_along(x, dim, index, out); }
  void scatter_add(const Tensor& x, int dim, const Tensor& index, Tensor& out) override {
    scatter_add_along(x, dim, index, out);
    out.bump_version();
  }

 private:
  static void run(const Loops& loops, std::initializer_list<const Tensor*> inputs, Tensor& out, bool accumulate, OpScalars scalars = {}) {
    run_elementwise(loops, std::span(inputs.begin(), inputs.size()), out, accumulate, scalars);
  }
};

}  // namespace

ElementwiseKernels& elementwise_kernels() {
  static CpuElementwiseKernels kernels;
  return kernels;
}

}  // namespace cpu
}  // namespace rz
