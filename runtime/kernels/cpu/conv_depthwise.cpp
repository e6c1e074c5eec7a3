// Depthwise convolution on the CPU: channels lie side by side, so that a pixel is one loop over them for every tap that falls into the
// image. Bound by memory, not by arithmetic.
#include <algorithm>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/conv_sizes.h"
#include "runtime/kernels/cpu/convert.h"

namespace rz::cpu {

ConvSizes conv_sizes(ConvKind kind, const Tensor& x, const Tensor& weight, const ConvWindow& window, const Tensor& y) {
  const bool depthwise = kind == ConvKind::depthwise;
  RZ_CHECK(x.rank() == 4 && y.rank() == 4 && weight.rank() == (depthwise ? 3 : 4) && weight.numel() > 0,
           "{}convolution: {} and weights of {} give no {}", depthwise ? "depthwise " : "", x.str(), weight.str(), y.str());
  RZ_CHECK(window.stride >= 1 && window.padding >= 0, "convolution: stride {} or padding {} is impossible", window.stride, window.padding);
  const int first = depthwise ? 0 : 1;
  const ConvSizes s{x.size(0),
                    x.size(1),
                    x.size(2),
                    x.size(3),
                    window.output_extent(x.size(1), weight.size(first)),
                    window.output_extent(x.size(2), weight.size(first + 1)),
                    depthwise ? weight.size(2) : weight.size(0),
                    weight.size(first),
                    weight.size(first + 1),
                    window};
  RZ_CHECK(s.out_height >= 1 && s.out_width >= 1, "convolution: weights of {} with padding {} do not fit into images of {}", weight.str(),
           window.padding, x.str());
  RZ_CHECK(weight.size(-1) == s.in && y.shape() == (Shape{s.images, s.out_height, s.out_width, s.out}),
           "convolution: images of {} and weights of {} with stride {} and padding {} do not give {}", x.str(), weight.str(), window.stride,
           window.padding, y.str());
  for (const Tensor* t : {&x, &weight, &y})
    RZ_CHECK(t->is_contiguous() && t->dtype() == x.dtype(), "convolution: {} must be contiguous and of the type of {}", t->str(), x.str());
  return s;
}

namespace {

constexpr int64_t kGrainElements = 16384;

// Calls visit(y row, y column, kernel row, kernel column) offsets for the taps of one output pixel that lie inside the image.
template <class F>
void each_tap(const ConvSizes& s, int64_t i, int64_t j, F visit) {
  const int64_t row = i * s.window.stride - s.window.padding, column = j * s.window.stride - s.window.padding;
  for (int64_t r = std::max<int64_t>(0, -row); r < std::min(s.kernel_h, s.height - row); ++r)
    for (int64_t q = std::max<int64_t>(0, -column); q < std::min(s.kernel_w, s.width - column); ++q)
      visit((row + r) * s.width + column + q, r * s.kernel_w + q);
}

// The weights (or a bias) in the compute type.
template <class T>
std::vector<compute_t<T>> widened(const Tensor& t) {
  std::vector<compute_t<T>> out(static_cast<size_t>(t.numel()));
  load_run(t.data<T>(), 1, out.data(), t.numel());
  return out;
}

int64_t grain(int64_t elements_per_index) { return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_index)); }

}  // namespace

void depthwise_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, Tensor& y) {
  const ConvSizes s = conv_sizes(ConvKind::depthwise, x, weight, window, y);
  RZ_CHECK(!bias.defined() || (bias.shape() == Shape{s.out} && bias.is_contiguous() && bias.dtype() == y.dtype()),
           "convolution: a bias of {} does not fit weights of {}", bias.str(), weight.str());
  dispatch_floating(x.dtype(), "depthwise convolution", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const std::vector<C> w = widened<T>(weight);
    const std::vector<C> b = bias.defined() ? widened<T>(bias) : std::vector<C>(static_cast<size_t>(s.in));
    const int64_t channels = s.in;
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_for(s.images * s.out_height, grain(s.out_width * channels * s.kernel_h * s.kernel_w), [&](int64_t begin, int64_t end) {
      std::vector<C> sums(static_cast<size_t>(channels));
      for (int64_t line = begin; line < end; ++line) {
        const T* image = from + line / s.out_height * s.height * s.width * channels;
        for (int64_t j = 0; j < s.out_width; ++j) {
          C* __restrict sum = sums.data();
          std::copy(b.begin(), b.end(), sum);
          each_tap(s, line % s.out_height, j, [&](int64_t pixel, int64_t tap) {
            const T* __restrict v = image + pixel * channels;
            const C* __restrict k = w.data() + tap * channels;
            for (int64_t c = 0; c < channels; ++c) sum[c] += k[c] * static_cast<C>(v[c]);
          });
          store_run(sum, to + (line * s.out_width + j) * channels, 1, channels, false);
        }
      }
    });
  });
}

void depthwise_data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate) {
  const ConvSizes s = conv_sizes(ConvKind::depthwise, dx, weight, window, grad);
  dispatch_floating(dx.dtype(), "depthwise convolution", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const std::vector<C> w = widened<T>(weight);
    const int64_t channels = s.in;
    const T* from = grad.data<T>();
    T* to = dx.data<T>();
    // An image at a time: its pixels collect from the outputs that saw them, in rising order of outputs.
    parallel_for(s.images, grain(s.out_height * s.out_width * channels * s.kernel_h * s.kernel_w), [&](int64_t begin, int64_t end) {
      std::vector<C> sums(static_cast<size_t>(s.height * s.width * channels));
      for (int64_t n = begin; n < end; ++n) {
        std::fill(sums.begin(), sums.end(), C(0));
        for (int64_t i = 0; i < s.out_height; ++i)
          for (int64_t j = 0; j < s.out_width; ++j) {
            const T* __restrict g = from + ((n * s.out_height + i) * s.out_width + j) * channels;
            each_tap(s, i, j, [&](int64_t pixel, int64_t tap) {
              C* __restrict sum = sums.data() + pixel * channels;
              const C* __restrict k = w.data() + tap * channels;
              for (int64_t c = 0; c < channels; ++c) sum[c] += k[c] * static_cast<C>(g[c]);
            });
          }
        store_run(sums.data(), to + n * s.height * s.width * channels, 1, s.height * s.width * channels, accumulate);
      }
    });
  });
}

void depthwise_weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight, bool accumulate) {
  const ConvSizes s = conv_sizes(ConvKind::depthwise, x, dweight, window, grad);
  dispatch_floating(grad.dtype(), "depthwise convolution", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const T* g = grad.data<T>();
    const T* from = x.data<T>();
    T* to = dweight.data<T>();
    const int64_t channels = s.in;
    // Threads share channels: each sums all images in order.
    constexpr int64_t kBlock = 64;
    parallel_for((channels + kBlock - 1) / kBlock, grain(s.images * s.out_height * s.out_width * s.kernel_h * s.kernel_w * kBlock),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t block = begin; block < end; ++block) {
                     const int64_t first = block * kBlock, count = std::min(kBlock, channels - first);
                     std::vector<C> sums(static_cast<size_t>(s.kernel_h * s.kernel_w * count));
                     for (int64_t n = 0; n < s.images; ++n)
                       for (int64_t i = 0; i < s.out_height; ++i)
                         for (int64_t j = 0; j < s.out_width; ++j) {
                           const T* __restrict gradient = g + ((n * s.out_height + i) * s.out_width + j) * channels + first;
                           const T* image = from + n * s.height * s.width * channels + first;
                           each_tap(s, i, j, [&](int64_t pixel, int64_t tap) {
                             C* __restrict sum = sums.data() + tap * count;
                             const T* __restrict v = image + pixel * channels;
                             for (int64_t c = 0; c < count; ++c) sum[c] += static_cast<C>(gradient[c]) * static_cast<C>(v[c]);
                           });
                         }
                     for (int64_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap)
                       store_run(sums.data() + tap * count, to + tap * channels + first, 1, count, accumulate);
                   }
                 });
  });
}

}  // namespace rz::cpu
