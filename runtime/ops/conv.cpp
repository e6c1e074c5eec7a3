#include "runtime/ops/conv.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/shape.h"

namespace rz::ops {

namespace {

// The images as the kernels read them, the result to be written, and checks, for weights [O, KH, KW, I] or (depthwise) [KH, KW, C].
struct Call {
  Tensor images, weight, bias, y;
  ConvKernels& kernels;

  Call(const char* name, const Tensor& x, const Tensor& w, const Tensor& b, const ConvWindow& window, int weight_rank)
      : kernels(*backend(x.device()).conv) {
    RZ_CHECK(x.rank() == 4 && w.rank() == weight_rank && x.size(-1) == w.size(-1), "{}: images of {} [N, H, W, C] do not fit weights of {}",
             name, x.str(), w.str());
    RZ_CHECK(window.stride >= 1 && window.padding >= 0, "{}: stride {} or padding {} is impossible", name, window.stride, window.padding);
    const int64_t out = weight_rank == 3 ? x.size(-1) : w.size(0);
    RZ_CHECK(!b.defined() || b.shape() == Shape{out}, "{}: a bias of {} does not fit weights of {}", name, b.str(), w.str());
    images = to_dense(x, autograd::needs_grad({w}) ? ambient_category() : Category::workspace);
    weight = to_dense(w, autograd::needs_grad({x}) ? ambient_category() : Category::workspace);
    bias = b.defined() ? to_dense(b) : Tensor();
    y = Tensor::empty({x.size(0), window.output_extent(x.size(1), w.size(-3)), window.output_extent(x.size(2), w.size(-2)), out}, x.dtype(),
                      name);
  }
};

void bias_gradient(const Tensor& grad, autograd::InputGradients& in) {
  in.into(2, [&](Tensor& dbias, bool accumulate) { backend(grad.device()).reduction->sum_to_shape(view_rows(grad), dbias, accumulate); });
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, ConvActivation activation) {
  const bool rectified = activation == ConvActivation::relu;
  if (x.rank() == 4 && weight.rank() == 4 && weight.size(1) == 1 && weight.size(2) == 1 && window.stride == 1 && window.padding == 0) {
    const Tensor y = linear(x, reshape(weight, {weight.size(0), weight.size(3)}), bias);
    return rectified ? relu(y) : y;
  }
  Call call("conv2d", x, weight, bias, window, 4);
  call.kernels.forward(call.images, call.weight, call.bias, window, activation, call.y);
  if (!autograd::needs_grad({x, weight, bias})) return call.y;
  const auto saved_x = autograd::needs_grad({weight}) ? autograd::Saved(call.images) : autograd::Saved();
  const auto saved_weight = autograd::needs_grad({x}) ? autograd::Saved(call.weight) : autograd::Saved();
  const auto saved_y = rectified ? autograd::Saved(call.y) : autograd::Saved();
  return autograd::record(
      "conv2d", call.y, {x, weight, bias},
      [&kernels = call.kernels, saved_x, saved_weight, saved_y, rectified, window](const Tensor& grad, autograd::InputGradients& in) {
        Tensor g = to_dense(grad);
        if (rectified) {
          g = Tensor::empty(grad.shape(), grad.dtype(), Category::workspace, "gradient before ReLU");
          backend(grad.device()).elementwise->unary_gradient(UnaryOp::relu, grad, saved_y.get(), g, false);
        }
        in.into(0, [&](Tensor& dx, bool accumulate) { kernels.data_gradient(g, saved_weight.get(), window, dx, accumulate); });
        in.into(1, [&](Tensor& dw, bool accumulate) { kernels.weight_gradient(g, saved_x.get(), window, dw, accumulate); });
        bias_gradient(g, in);
      });
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window) {
  Call call("depthwise_conv2d", x, weight, bias, window, 3);
  call.kernels.depthwise_forward(call.images, call.weight, call.bias, window, call.y);
  if (!autograd::needs_grad({x, weight, bias})) return call.y;
  const auto saved_x = autograd::needs_grad({weight}) ? autograd::Saved(call.images) : autograd::Saved();
  const auto saved_weight = autograd::needs_grad({x}) ? autograd::Saved(call.weight) : autograd::Saved();
  return autograd::record(
      "depthwise_conv2d", call.y, {x, weight, bias},
      [&kernels = call.kernels, saved_x, saved_weight, window](const Tensor& grad, autograd::InputGradients& in) {
        const Tensor g = to_dense(grad);
        in.into(0, [&](Tensor& dx, bool accumulate) { kernels.depthwise_data_gradient(g, saved_weight.get(), window, dx, accumulate); });
        in.into(1, [&](Tensor& dw, bool accumulate) { kernels.depthwise_weight_gradient(g, saved_x.get(), window, dw, accumulate); });
        bias_gradient(g, in);
      });
}

}  // namespace rz::ops
