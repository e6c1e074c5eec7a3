// Pooling and upsampling on the CPU: an image is one thread's; inner loops run over channels.
#include "runtime/kernels/image.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/convert.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 16384;
constexpr int64_t kMostIndices = 256;  // an index is a byte

// A large image (x of a pooling) and a small one (its y) that cover each other by windows.
struct Sizes {
  int64_t images, height, width, small_height, small_width, channels;
  PoolWindow window;
  int64_t large() const { return height * width * channels; }
  int64_t small() const { return small_height * small_width * channels; }
};

Sizes sizes(const char* what, const Tensor& large, const Tensor& small, const PoolWindow& window) {
  RZ_CHECK(window.size >= 1 && window.stride >= 1, "{}: a window of {} pixels, {} apart, is impossible", what, window.size, window.stride);
  RZ_CHECK(large.rank() == 4 && small.rank() == 4 && large.is_contiguous() && small.is_contiguous() && large.dtype() == small.dtype(),
           "{}: {} and {} must be contiguous images [N, H, W, C] of one type", what, large.str(), small.str());
  const Sizes s{large.size(0), large.size(1), large.size(2), window.output_extent(large.size(1)), window.output_extent(large.size(2)),
                large.size(3), window};
  RZ_CHECK(small.shape() == (Shape{s.images, s.small_height, s.small_width, s.channels}),
           "{}: windows of {} pixels, {} apart, of {} do not give {}", what, window.size, window.stride, large.str(), small.str());
  return s;
}

void each_image(const Sizes& s, const std::function<void(int64_t)>& body) {
  parallel_for(s.images, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, s.large())), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) body(n);
  });
}

// visit(small element, large element, which): the first channels of a small pixel and of each large pixel of its window.
template <class F>
void each_pair(const Sizes& s, F visit) {
  for (int64_t i = 0; i < s.small_height; ++i)
    for (int64_t j = 0; j < s.small_width; ++j)
      for (int64_t r = 0; r < s.window.size; ++r)
        for (int64_t q = 0; q < s.window.size; ++q)
          visit((i * s.small_width + j) * s.channels, ((i * s.window.stride + r) * s.width + j * s.window.stride + q) * s.channels,
                r * s.window.size + q);
}

// small (+)= factor * sum over each window of large.
void sum_windows(const char* what, const Tensor& large, const PoolWindow& window, double factor, Tensor& small, bool accumulate) {
  const Sizes s = sizes(what, large, small, window);
  dispatch_floating(large.dtype(), what, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const int64_t last = window.size * window.size - 1;
    each_image(s, [&](int64_t n) {
      const T* from = large.data<T>() + n * s.large();
      T* to = small.data<T>() + n * s.small();
      std::vector<C> sums(static_cast<size_t>(s.channels));
      each_pair(s, [&](int64_t small_at, int64_t large_at, int64_t which) {
        C* __restrict sum = sums.data();
        const T* __restrict v = from + large_at;
        if (which == 0)
          for (int64_t c = 0; c < s.channels; ++c) sum[c] = static_cast<C>(v[c]);
        else
          for (int64_t c = 0; c < s.channels; ++c) sum[c] += static_cast<C>(v[c]);
        if (which != last) return;
        for (int64_t c = 0; c < s.channels; ++c) sum[c] *= static_cast<C>(factor);
        store_run(sum, to + small_at, 1, s.channels, accumulate);
      });
    });
  });
}

// large (+)= factor * what the windows over each pixel hold in small.
void spread_windows(const char* what, const Tensor& small, const PoolWindow& window, double factor, Tensor& large, bool accumulate) {
  const Sizes s = sizes(what, large, small, window);
  dispatch_floating(large.dtype(), what, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    each_image(s, [&](int64_t n) {
      const T* from = small.data<T>() + n * s.small();
      std::vector<C> sums(static_cast<size_t>(s.large()));
      each_pair(s, [&](int64_t small_at, int64_t large_at, int64_t) {
        C* __restrict sum = sums.data() + large_at;
        const T* __restrict v = from + small_at;
        for (int64_t c = 0; c < s.channels; ++c) sum[c] += static_cast<C>(factor) * static_cast<C>(v[c]);
      });
      store_run(sums.data(), large.data<T>() + n * s.large(), 1, s.large(), accumulate);
    });
  });
}

class CpuImageKernels final : public ImageKernels {
 public:
  void average_pool(const Tensor& x, const PoolWindow& window, Tensor& y) override {
    sum_windows("average_pool", x, window, 1.0 / static_cast<double>(window.size * window.size), y, false);
  }
  void average_pool_gradient(const Tensor& grad, const PoolWindow& window, Tensor& dx, bool accumulate) override {
    spread_windows("average_pool", grad, window, 1.0 / static_cast<double>(window.size * window.size), dx, accumulate);
  }
  void upsample(const Tensor& x, int64_t factor, Tensor& y) override { spread_windows("upsample", x, {factor, factor}, 1, y, false); }
  void upsample_gradient(const Tensor& grad, int64_t factor, Tensor& dx, bool accumulate) override {
    sum_windows("upsample", grad, {factor, factor}, 1, dx, accumulate);
  }

  void max_pool(const Tensor& x, const PoolWindow& window, Tensor& y, Tensor& index) override {
    const Sizes s = sizes("max_pool", x, y, window);
    RZ_CHECK(window.size * window.size <= kMostIndices, "max_pool: a window of {} x {} pixels is too large; at most {} pixels", window.size,
             window.size, kMostIndices);
    RZ_CHECK(!index.defined() || (index.shape() == y.shape() && index.dtype() == DType::u8 && index.is_contiguous()),
             "max_pool: indices {} do not fit {}", index.str(), y.str());
    dispatch_floating(x.dtype(), "max_pool", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      each_image(s, [&](int64_t n) {
        const T* from = x.data<T>() + n * s.large();
        T* to = y.data<T>() + n * s.small();
        uint8_t* at = index.defined() ? index.data<uint8_t>() + n * s.small() : nullptr;
        // The largest so far and its place, both in the compute type: one loop of selections for the compiler.
        std::vector<C> best(static_cast<size_t>(s.channels)), place(static_cast<size_t>(s.channels));
        const int64_t last = window.size * window.size - 1;
        each_pair(s, [&](int64_t small_at, int64_t large_at, int64_t which) {
          const T* __restrict v = from + large_at;
          C* __restrict value = best.data();
          C* __restrict where = place.data();
          const C here = static_cast<C>(which);
          if (which == 0) {
            for (int64_t c = 0; c < s.channels; ++c) value[c] = static_cast<C>(v[c]);
            std::fill_n(where, s.channels, C(0));
          } else {
            for (int64_t c = 0; c < s.channels; ++c) {
              const C now = static_cast<C>(v[c]), before = value[c];
              const bool stays = now <= before || before != before;
              value[c] = stays ? before : now;
              where[c] = stays ? where[c] : here;
            }
          }
          if (which != last) return;
          store_run(value, to + small_at, 1, s.channels, false);
          if (at != nullptr)
            for (int64_t c = 0; c < s.channels; ++c) at[small_at + c] = static_cast<uint8_t>(where[c]);
        });
      });
    });
  }

  void max_pool_gradient(const Tensor& grad, const Tensor& index, const PoolWindow& window, Tensor& dx, bool accumulate) override {
    const Sizes s = sizes("max_pool", dx, grad, window);
    dispatch_floating(dx.dtype(), "max_pool", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      each_image(s, [&](int64_t n) {
        const T* from = grad.data<T>() + n * s.small();
        const uint8_t* at = index.data<uint8_t>() + n * s.small();
        std::vector<C> sums(static_cast<size_t>(s.large()));
        each_pair(s, [&](int64_t small_at, int64_t large_at, int64_t which) {
          for (int64_t c = 0; c < s.channels; ++c)
            sums[static_cast<size_t>(large_at + c)] += at[small_at + c] == which ? static_cast<C>(from[small_at + c]) : C(0);
        });
        store_run(sums.data(), dx.data<T>() + n * s.large(), 1, s.large(), accumulate);
      });
    });
  }
};

}  // namespace

ImageKernels& image_kernels() {
  static CpuImageKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
