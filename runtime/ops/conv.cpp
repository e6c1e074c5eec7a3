#include "runtime/ops/conv.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/shape.h"

namespace rz::ops {

namespace {

struct Family {
  const char* name;
  void (ConvKernels::*forward)(const Tensor&, const Tensor&, const Tensor&, const ConvWindow&, Tensor&);
  void (ConvKernels::*data_gradient)(const Tensor&, const Tensor&, const ConvWindow&, Tensor&, bool);
  void (ConvKernels::*weight_gradient)(const Tensor&, const Tensor&, const ConvWindow&, Tensor&, bool);
};
constexpr Family kDense{"conv2d", &ConvKernels::forward, &ConvKernels::data_gradient, &ConvKernels::weight_gradient};
constexpr Family kDepthwise{"depthwise_conv2d", &ConvKernels::depthwise_forward, &ConvKernels::depthwise_data_gradient,
                            &ConvKernels::depthwise_weight_gradient};

Tensor convolve(const Family& family, const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window) {
  const bool depthwise = &family == &kDepthwise;
  RZ_CHECK(x.rank() == 4 && weight.rank() == (depthwise ? 3 : 4) && x.size(-1) == weight.size(-1),
           "{}: images of {} [N, H, W, C] do not fit weights of {}", family.name, x.str(), weight.str());
  RZ_CHECK(window.stride >= 1 && window.padding >= 0, "{}: stride {} or padding {} is impossible", family.name, window.stride,
           window.padding);
  const int64_t out = depthwise ? x.size(-1) : weight.size(0);
  RZ_CHECK(!bias.defined() || bias.shape() == Shape{out}, "{}: a bias of {} does not fit weights of {}", family.name, bias.str(),
           weight.str());
  ConvKernels& kernels = *backend(x.device()).conv;
  const Tensor images = to_dense(x, autograd::needs_grad({weight}) ? ambient_category() : Category::workspace);
  const Tensor dense_weight = to_dense(weight, autograd::needs_grad({x}) ? ambient_category() : Category::workspace);
  Tensor y = Tensor::empty({x.size(0), window.output_extent(x.size(1), weight.size(-3)), window.output_extent(x.size(2), weight.size(-2)),
                            out},
                           x.dtype(), family.name);
  (kernels.*family.forward)(images, dense_weight, bias.defined() ? to_dense(bias) : Tensor(), window, y);
  if (!autograd::needs_grad({x, weight, bias})) return y;
  const auto saved_x = autograd::needs_grad({weight}) ? autograd::Saved(images) : autograd::Saved();
  const auto saved_weight = autograd::needs_grad({x}) ? autograd::Saved(dense_weight) : autograd::Saved();
  return autograd::record(family.name, y, {x, weight, bias},
                          [&kernels, &family, saved_x, saved_weight, window](const Tensor& grad, autograd::InputGradients& in) {
                            const Tensor g = to_dense(grad);
                            in.into(0, [&](Tensor& dx, bool accumulate) {
                              (kernels.*family.data_gradient)(g, saved_weight.get(), window, dx, accumulate);
                            });
                            in.into(1, [&](Tensor& dweight, bool accumulate) {
                              (kernels.*family.weight_gradient)(g, saved_x.get(), window, dweight, accumulate);
                            });
                            in.into(2, [&](Tensor& dbias, bool accumulate) {
                              backend(g.device()).reduction->sum_to_shape(view_rows(g), dbias, accumulate);
                            });
                          });
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window) {
  if (x.rank() == 4 && weight.rank() == 4 && weight.size(1) == 1 && weight.size(2) == 1 && window.stride == 1 && window.padding == 0)
    return linear(x, reshape(weight, {weight.size(0), weight.size(3)}), bias);
  return convolve(kDense, x, weight, bias, window);
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window) {
  return convolve(kDepthwise, x, weight, bias, window);
}

}  // namespace rz::ops
