// Random kernels on the CPU.
#include "runtime/kernels/random.h"

#include "runtime/core/parallel.h"
#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 4096;

class CpuRandomKernels final : public RandomKernels {
 public:
  void dropout(const Tensor& x, double p, const SampleKey& key, Tensor& y, bool accumulate) override {
    RZ_CHECK(x.is_contiguous() && y.is_contiguous() && x.shape() == y.shape() && x.dtype() == y.dtype(), "dropout: {} and {} do not fit",
             x.str(), y.str());
    if (x.numel() == 0) return;
    const int64_t samples = x.rank() == 0 ? 1 : x.size(0);
    const int64_t per_sample = x.numel() / samples;
    const int64_t blocks_per_sample = (per_sample + 3) / 4;
    // A word's upper 24 bits are uniform: dropped where they are below p.
    const auto threshold = static_cast<uint32_t>(p * 0x1.0p24);
    dispatch_floating(x.dtype(), "dropout", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* from = x.data<T>();
      T* to = y.data<T>();
      const C scale = static_cast<C>(1.0 / (1.0 - p));
      // Blocks of four elements, so that samples of any number and size spread over the threads.
      parallel_for(samples * blocks_per_sample, kGrainElements / 4, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end;) {
          const int64_t sample = block / blocks_per_sample;
          const int64_t stop = std::min(end, (sample + 1) * blocks_per_sample);
          const Random random(key.seed, key.stream, key.step, key.first_sample + static_cast<uint64_t>(sample));
          for (; block < stop; ++block) {
            const int64_t first = (block - sample * blocks_per_sample) * 4;
            const auto words = random.block(static_cast<uint64_t>(first / 4));
            const int64_t count = std::min<int64_t>(4, per_sample - first);
            for (int64_t i = 0; i < count; ++i) {
              const int64_t at = sample * per_sample + first + i;
              const bool keep = (words[static_cast<size_t>(i)] >> 8) >= threshold;
              const C value = keep ? static_cast<C>(from[at]) * scale : C(0);
              to[at] = static_cast<T>(accumulate ? static_cast<C>(to[at]) + value : value);
            }
          }
        }
      });
    });
  }

  void normal(const SampleKey& key, Tensor& out) override {
    RZ_CHECK(out.is_contiguous(), "normal: {} is not contiguous", out.str());
    if (out.numel() == 0) return;
    const int64_t samples = out.rank() == 0 ? 1 : out.size(0);
    const int64_t per_sample = out.numel() / samples;
    const int64_t pairs_per_sample = (per_sample + 1) / 2;  // Box-Muller makes two numbers at a time
    dispatch_floating(out.dtype(), "normal", [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* to = out.data<T>();
      parallel_for(samples * pairs_per_sample, kGrainElements / 8, [&](int64_t begin, int64_t end) {
        for (int64_t pair = begin; pair < end;) {
          const int64_t sample = pair / pairs_per_sample;
          const int64_t stop = std::min(end, (sample + 1) * pairs_per_sample);
          const Random random(key.seed, key.stream, key.step, key.first_sample + static_cast<uint64_t>(sample));
          for (; pair < stop; ++pair) {
            const int64_t first = (pair - sample * pairs_per_sample) * 2;
            const auto [even, odd] = random.normal_pair(static_cast<uint64_t>(first / 2));
            to[sample * per_sample + first] = static_cast<T>(even);
            if (first + 1 < per_sample) to[sample * per_sample + first + 1] = static_cast<T>(odd);
          }
        }
      });
    });
  }
};

}  // namespace

RandomKernels& random_kernels() {
  static CpuRandomKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
