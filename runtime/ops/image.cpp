#include "runtime/ops/image.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"
#include "runtime/ops/shape.h"

namespace rz::ops {

namespace {
void check_images(const char* what, const Tensor& x) {
  RZ_CHECK(x.rank() == 4 && is_floating(x.dtype()), "{} needs floating-point images [N, H, W, C], not {}", what, x.str());
}

Tensor pooled(const char* what, const Tensor& x, const PoolWindow& window, DType dtype) {
  check_images(what, x);
  RZ_CHECK(window.size >= 1 && window.stride >= 1 && window.output_extent(x.size(1)) >= 1 && window.output_extent(x.size(2)) >= 1,
           "{}: a window of {} pixels, {} apart, does not fit into {}", what, window.size, window.stride, x.str());
  return Tensor::empty({x.size(0), window.output_extent(x.size(1)), window.output_extent(x.size(2)), x.size(3)}, dtype, what);
}
}  // namespace

Tensor average_pool(const Tensor& x, const PoolWindow& window) {
  Tensor y = pooled("average_pool", x, window, x.dtype());
  ImageKernels& kernels = *backend(x.device()).image;
  kernels.average_pool(to_dense(x), window, y);
  return autograd::record("average_pool", y, {x}, [&kernels, window](const Tensor& grad, autograd::InputGradients& in) {
    in.into(0, [&](Tensor& dx, bool accumulate) { kernels.average_pool_gradient(to_dense(grad), window, dx, accumulate); });
  });
}

Tensor max_pool(const Tensor& x, const PoolWindow& window) {
  Tensor y = pooled("max_pool", x, window, x.dtype());
  ImageKernels& kernels = *backend(x.device()).image;
  const bool keeps = autograd::needs_grad({x});
  Tensor index = keeps ? pooled("max_pool", x, window, DType::u8) : Tensor();
  kernels.max_pool(to_dense(x), window, y, index);
  if (!keeps) return y;
  return autograd::record("max_pool", y, {x}, [&kernels, window, index](const Tensor& grad, autograd::InputGradients& in) {
    in.into(0, [&](Tensor& dx, bool accumulate) { kernels.max_pool_gradient(to_dense(grad), index, window, dx, accumulate); });
  });
}

Tensor upsample(const Tensor& x, int64_t factor) {
  check_images("upsample", x);
  RZ_CHECK(factor >= 1, "upsample: a factor of {} is impossible", factor);
  Tensor y = Tensor::empty({x.size(0), factor * x.size(1), factor * x.size(2), x.size(3)}, x.dtype(), "upsample");
  ImageKernels& kernels = *backend(x.device()).image;
  kernels.upsample(to_dense(x), factor, y);
  return autograd::record("upsample", y, {x}, [&kernels, factor](const Tensor& grad, autograd::InputGradients& in) {
    in.into(0, [&](Tensor& dx, bool accumulate) { kernels.upsample_gradient(to_dense(grad), factor, dx, accumulate); });
  });
}

Tensor space_to_depth(const Tensor& x, int64_t block) {
  check_images("space_to_depth", x);
  RZ_CHECK(block >= 1 && x.size(1) % block == 0 && x.size(2) % block == 0,
           "space_to_depth: images of {} do not divide into blocks of {} x {}", x.str(), block, block);
  const int64_t rows = x.size(1) / block, columns = x.size(2) / block;
  return reshape(permute(reshape(x, {x.size(0), rows, block, columns, block, x.size(3)}), {0, 1, 3, 2, 4, 5}),
                 {x.size(0), rows, columns, block * block * x.size(3)});
}

Tensor depth_to_space(const Tensor& x, int64_t block) {
  check_images("depth_to_space", x);
  RZ_CHECK(block >= 1 && x.size(3) % (block * block) == 0, "depth_to_space: the channels of {} do not divide into blocks of {} x {}",
           x.str(), block, block);
  const int64_t channels = x.size(3) / (block * block);
  return reshape(permute(reshape(x, {x.size(0), x.size(1), x.size(2), block, block, channels}), {0, 1, 3, 2, 4, 5}),
                 {x.size(0), x.size(1) * block, x.size(2) * block, channels});
}

}  // namespace rz::ops
