#include "models/diffusion/state.h"

#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

namespace {
// [B, 1, ..]
Shape one_per_sample(Shape shape) {
  for (int d = 1; d < shape.rank(); ++d) shape = shape.with(d, 1);
  return shape;
}
}  // namespace

Tensor scaled(double a, const Tensor& x) { return a == 1 ? x : ops::scale(x, a); }

Tensor combine(double a, const Tensor& x, double b, const Tensor& y) { return ops::add(scaled(a, x), scaled(b, y)); }

Tensor combine(double a, const Tensor& x, double b, const Tensor& y, double c, const Tensor& z) {
  return ops::add(combine(a, x, b, y), scaled(c, z));
}

Tensor times(const Tensor& factor, const Tensor& x) { return ops::mul(factor, x); }

Tensor mean_per_sample(const Tensor& x) {
  RZ_CHECK(x.rank() >= 2, "a state needs samples and at least one more dimension, not {}", x.str());
  std::vector<int> dims;
  for (int d = 1; d < x.rank(); ++d) dims.push_back(d);
  return ops::mean(x, dims);
}

Tensor rms_ratio(const Tensor& z, const Tensor& y) {
  const Tensor ratio_B = ops::sqrt(ops::div(mean_per_sample(ops::square(z)), mean_per_sample(ops::square(y))));
  return ops::reshape(ratio_B, one_per_sample(z.shape()));
}

Tensor learned_std(const Tensor& v, double smallest, double largest) {
  // log variance = (v + 1)/2 largest + (1 - v)/2 smallest
  return ops::exp(ops::shift(ops::scale(v, 0.25 * (largest - smallest)), 0.25 * (largest + smallest)));
}

std::pair<Tensor, Tensor> split_channels(const Tensor& output, const Shape& shape, int channel_dim) {
  const int d = shape.checked_dim(channel_dim);
  RZ_CHECK(output.shape() == shape.with(d, 2 * shape[d]), "a network that learns variances must map {} to twice its {} channels, not to {}",
           shape.str(), shape[d], output.str());
  return {ops::contiguous(ops::slice(output, d, 0, shape[d])), ops::contiguous(ops::slice(output, d, shape[d], 2 * shape[d]))};
}

Tensor per_sample(const std::vector<double>& values, const Shape& shape, DType dtype) {
  const Shape broadcast = one_per_sample(shape);
  if (dtype == DType::f64) return Tensor::of<double>(broadcast, values, "coefficients");
  return Tensor::of<float>(broadcast, std::vector<float>(values.begin(), values.end()), "coefficients");
}

}  // namespace rz::models::diffusion
