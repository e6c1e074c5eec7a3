// Group norm on the CPU, a sample at a time: it stays in the cache between the passes over it. Per-channel numbers are repeated to a
// row of several pixels, so that loops over few channels are as long as vectors like.
#include "runtime/kernels/group_norm.h"

#include <algorithm>
#include <vector>

#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/functors.h"

namespace rz::cpu {

namespace {

constexpr int64_t kGrainElements = 16384;
constexpr int64_t kRowElements = 256;

struct Sizes {
  int64_t samples, pixels, channels, groups;
  int64_t elements() const { return pixels * channels; }  // of a sample
  int64_t group_channels() const { return channels / groups; }
  int64_t row() const { return std::max<int64_t>(1, kRowElements / channels) * channels; }
};

Sizes sizes(const GroupNormCall& call, const Tensor& x) {
  RZ_CHECK(x.rank() == 3 && x.is_contiguous(), "group_norm: {} is no contiguous [N, pixels, C]", x.str());
  const int64_t channels = x.size(2);
  RZ_CHECK(call.groups >= 1 && channels >= 1 && channels % call.groups == 0, "group_norm: {} channels do not divide into {} groups",
           channels, call.groups);
  const auto check = [&](const Tensor& t, const Shape& shape) {
    RZ_CHECK(!t.defined() || (t.shape() == shape && t.is_contiguous()), "group_norm: a parameter {} does not fit {}; it should be {}",
             t.str(), x.str(), shape.str());
  };
  check(call.weight, {channels});
  check(call.bias, {channels});
  check(call.scale, {x.size(0), channels});
  check(call.shift, {x.size(0), channels});
  return {x.size(0), x.size(1), channels, call.groups};
}

// Row `row` of a parameter in the compute type, `missing` throughout where it is undefined.
template <class C>
void load_parameter(const Tensor& t, int64_t row, int64_t channels, C missing, C* to) {
  if (!t.defined()) {
    std::fill_n(to, channels, missing);
    return;
  }
  dispatch_floating(t.dtype(), "group_norm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    load_run(t.data<T>() + row * channels, 1, to, channels);
  });
}

// One sample's affine map: z = normalized x * gain + offset, per channel.
template <class C>
struct Affine {
  std::vector<C> weight, bias, scale, shift, gain, offset;
  explicit Affine(int64_t channels) {
    for (auto* v : {&weight, &bias, &scale, &shift, &gain, &offset}) v->resize(static_cast<size_t>(channels));
  }
  void load(const GroupNormCall& call, int64_t sample, int64_t channels) {
    load_parameter(call.weight, 0, channels, C(1), weight.data());
    load_parameter(call.bias, 0, channels, C(0), bias.data());
    load_parameter(call.scale, sample, channels, C(0), scale.data());
    load_parameter(call.shift, sample, channels, C(0), shift.data());
    for (size_t c = 0; c < gain.size(); ++c) {
      gain[c] = weight[c] * (C(1) + scale[c]);
      offset[c] = bias[c] * (C(1) + scale[c]) + shift[c];
    }
  }
};

// f(begin, count) for rows of a sample: [begin, begin + count) begins at a pixel, count <= s.row().
template <class F>
void each_row(const Sizes& s, F f) {
  const int64_t row = s.row();
  for (int64_t begin = 0; begin < s.elements(); begin += row) f(begin, std::min(row, s.elements() - begin));
}

// values[c] repeated to a row.
template <class C>
void repeat(C* values, const Sizes& s) {
  for (int64_t i = s.channels; i < s.row(); ++i) values[i] = values[i - s.channels];
}

// Sums of a row's pixels per channel, then of each group's channels: into sums[group].
template <class C>
void fold_channels(C* row, const Sizes& s) {
  for (int64_t i = s.channels; i < s.row(); ++i) row[i % s.channels] += row[i];
}
template <class C>
C group_sum(const C* channel_sums, int64_t group, const Sizes& s) {
  C sum = 0;
  for (int64_t c = group * s.group_channels(); c < (group + 1) * s.group_channels(); ++c) sum += channel_sums[c];
  return sum;
}

template <class T, class C>
void statistics(const Sizes& s, double epsilon, const T* x, C* row, C* centre, C* mean, C* rstd) {
  const C count = static_cast<C>(s.pixels * s.group_channels());
  std::fill_n(row, s.row(), C(0));
  each_row(s, [&](int64_t begin, int64_t n) {
    const T* __restrict from = x + begin;
    for (int64_t i = 0; i < n; ++i) row[i] += static_cast<C>(from[i]);
  });
  fold_channels(row, s);
  for (int64_t g = 0; g < s.groups; ++g) mean[g] = group_sum(row, g, s) / count;
  for (int64_t c = 0; c < s.channels; ++c) centre[c] = mean[c / s.group_channels()];
  repeat(centre, s);
  // The second pass: a far mean does not cancel.
  std::fill_n(row, s.row(), C(0));
  each_row(s, [&](int64_t begin, int64_t n) {
    const T* __restrict from = x + begin;
    for (int64_t i = 0; i < n; ++i) {
      const C d = static_cast<C>(from[i]) - centre[i];
      row[i] += d * d;
    }
  });
  fold_channels(row, s);
  for (int64_t g = 0; g < s.groups; ++g) rstd[g] = C(1) / math::sqrt(group_sum(row, g, s) / count + static_cast<C>(epsilon));
}

class CpuGroupNormKernels final : public GroupNormKernels {
 public:
  void forward(const GroupNormCall& call, const Tensor& x, Tensor& y, Tensor& mean, Tensor& rstd) override {
    const Sizes s = sizes(call, x);
    RZ_CHECK(y.shape() == x.shape() && y.is_contiguous() && y.dtype() == x.dtype(), "group_norm: {} does not fit {}", y.str(), x.str());
    if (x.numel() == 0) return;
    dispatch_floating(x.dtype(), "group_norm", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* from = x.data<T>();
      T* to = y.data<T>();
      C* m = mean.data<C>();
      C* r = rstd.data<C>();
      parallel_for(s.samples, std::max<int64_t>(1, kGrainElements / s.elements()), [&](int64_t first, int64_t last) {
        std::vector<C> numbers(static_cast<size_t>(4 * s.row()));
        C* __restrict row = numbers.data();
        C* __restrict centre = row + s.row();
        C* __restrict gain = centre + s.row();
        C* __restrict offset = gain + s.row();
        Affine<C> affine(s.channels);
        for (int64_t n = first; n < last; ++n) {
          const T* sample = from + n * s.elements();
          T* result = to + n * s.elements();
          statistics(s, call.epsilon, sample, row, centre, m + n * s.groups, r + n * s.groups);
          affine.load(call, n, s.channels);
          for (int64_t c = 0; c < s.channels; ++c) {
            gain[c] = affine.gain[static_cast<size_t>(c)] * r[n * s.groups + c / s.group_channels()];
            offset[c] = affine.offset[static_cast<size_t>(c)];
          }
          repeat(gain, s);
          repeat(offset, s);
          each_row(s, [&](int64_t begin, int64_t count) {
            const T* __restrict in = sample + begin;
            T* __restrict out = result + begin;
            if (call.silu)
              for (int64_t i = 0; i < count; ++i)
                out[i] = static_cast<T>(
                    functors::Silu::value((static_cast<C>(in[i]) - centre[i]) * gain[i] + offset[i], functors::Parameters<C>{}));
            else
              for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>((static_cast<C>(in[i]) - centre[i]) * gain[i] + offset[i]);
          });
        }
      });
    });
  }

  // With h = grad * gain and means over a group: dx = rstd (h - mean(h) - xhat mean(h xhat)).
  void backward(const GroupNormCall& call, const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, Tensor& dx,
                bool accumulate, Tensor& sums) override {
    const Sizes s = sizes(call, x);
    RZ_CHECK(grad.shape() == x.shape() && grad.is_contiguous() && grad.dtype() == x.dtype(), "group_norm: a gradient {} does not fit {}",
             grad.str(), x.str());
    RZ_CHECK(sums.shape() == (Shape{s.samples, 2, s.channels}), "group_norm: sums {} should be [{}, 2, {}]", sums.str(), s.samples,
             s.channels);
    if (x.numel() == 0) return backend(sums.device()).elementwise->fill(sums, 0);
    dispatch_floating(x.dtype(), "group_norm", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const T* g = grad.data<T>();
      const T* from = x.data<T>();
      const C* m = mean.data<C>();
      const C* r = rstd.data<C>();
      C* sum = sums.data<C>();
      T* to = dx.defined() ? dx.data<T>() : nullptr;
      const int64_t threads = std::clamp<int64_t>(s.samples / std::max<int64_t>(1, kGrainElements / s.elements()), 1, thread_count());
      // The gradient before SiLU, of one sample per thread: both passes read it.
      const Tensor scratch =
          call.silu ? Tensor::empty({threads, s.elements()}, dtype_of<C>, Category::workspace, "group norm gradient") : Tensor();
      parallel_for(threads, 1, [&](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece)
          for (int64_t n = s.samples * piece / threads; n < s.samples * (piece + 1) / threads; ++n) {
            C* before = call.silu ? scratch.data<C>() + piece * s.elements() : nullptr;
            sample_backward(call, s, n, g + n * s.elements(), from + n * s.elements(), m + n * s.groups, r + n * s.groups, before,
                            sum + n * 2 * s.channels, to != nullptr ? to + n * s.elements() : nullptr, accumulate);
          }
      });
    });
  }

  void parameter_gradient(const GroupNormCall& call, const Tensor& sums, GroupNormParameter parameter, Tensor& out,
                          bool accumulate) override {
    const int64_t samples = sums.size(0), channels = sums.size(2);
    const bool per_sample = parameter == GroupNormParameter::scale || parameter == GroupNormParameter::shift;
    RZ_CHECK(out.shape() == (per_sample ? Shape{samples, channels} : Shape{channels}) && out.is_contiguous(),
             "group_norm: a parameter's gradient {} does not fit sums {}", out.str(), sums.str());
    dispatch_floating(sums.dtype(), "group_norm", [&](auto sum_tag) {
      using C = typename decltype(sum_tag)::type;
      if constexpr (std::is_same_v<C, compute_t<C>>) {
        dispatch_floating(out.dtype(), "group_norm", [&](auto tag) {
          using T = typename decltype(tag)::type;
          parallel_for(1, 1, [&](int64_t, int64_t) {
            Affine<C> affine(channels);
            std::vector<C> total(static_cast<size_t>(channels));
            for (int64_t n = 0; n < samples; ++n) {
              affine.load(call, n, channels);
              const C* plain = sums.data<C>() + n * 2 * channels;
              const C* times_x = plain + channels;
              for (size_t c = 0; c < total.size(); ++c) switch (parameter) {
                  case GroupNormParameter::weight:
                    total[c] += (C(1) + affine.scale[c]) * times_x[c];
                    break;
                  case GroupNormParameter::bias:
                    total[c] += (C(1) + affine.scale[c]) * plain[c];
                    break;
                  case GroupNormParameter::scale:
                    total[c] = affine.weight[c] * times_x[c] + affine.bias[c] * plain[c];
                    break;
                  case GroupNormParameter::shift:
                    total[c] = plain[c];
                    break;
                }
              if (per_sample) store_run(total.data(), out.data<T>() + n * channels, 1, channels, accumulate);
            }
            if (!per_sample) store_run(total.data(), out.data<T>(), 1, channels, accumulate);
          });
        });
      }
    });
  }

 private:
  template <class T, class C>
  static void sample_backward(const GroupNormCall& call, const Sizes& s, int64_t n, const T* grad, const T* x, const C* mean, const C* rstd,
                              C* before, C* sums, T* dx, bool accumulate) {
    std::vector<C> numbers(static_cast<size_t>(5 * s.row()));
    C* __restrict centre = numbers.data();
    C* __restrict gain = centre + s.row();  // of x - centre in z
    C* __restrict offset = gain + s.row();
    C* __restrict plain = offset + s.row();   // sums of the gradient
    C* __restrict times_x = plain + s.row();  // of the gradient times x - centre
    Affine<C> affine(s.channels);
    affine.load(call, n, s.channels);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t group = c / s.group_channels();
      centre[c] = mean[group];
      gain[c] = affine.gain[static_cast<size_t>(c)] * rstd[group];
      offset[c] = affine.offset[static_cast<size_t>(c)];
    }
    for (C* values : {centre, gain, offset}) repeat(values, s);
    each_row(s, [&](int64_t begin, int64_t count) {
      const T* __restrict g = grad + begin;
      const T* __restrict in = x + begin;
      if (before != nullptr) {
        C* __restrict h = before + begin;
        for (int64_t i = 0; i < count; ++i) {
          const C d = static_cast<C>(in[i]) - centre[i];
          const C v = functors::Silu::gradient(static_cast<C>(g[i]), d * gain[i] + offset[i], functors::Parameters<C>{});
          h[i] = v;
          plain[i] += v;
          times_x[i] += v * d;
        }
      } else {
        for (int64_t i = 0; i < count; ++i) {
          const C v = static_cast<C>(g[i]);
          plain[i] += v;
          times_x[i] += v * (static_cast<C>(in[i]) - centre[i]);
        }
      }
    });
    fold_channels(plain, s);
    fold_channels(times_x, s);
    for (int64_t c = 0; c < s.channels; ++c) {
      sums[c] = plain[c];
      sums[s.channels + c] = times_x[c] * rstd[c / s.group_channels()];
    }
    if (dx == nullptr) return;
    // dx = gradient * gain - (x - centre) * slope - level, with slope in `offset` and level in `plain`.
    const C count = static_cast<C>(s.pixels * s.group_channels());
    for (int64_t group = 0; group < s.groups; ++group) {
      C level = 0, slope = 0;
      for (int64_t c = group * s.group_channels(); c < (group + 1) * s.group_channels(); ++c) {
        level += affine.gain[static_cast<size_t>(c)] * sums[c];
        slope += affine.gain[static_cast<size_t>(c)] * sums[s.channels + c];
      }
      for (int64_t c = group * s.group_channels(); c < (group + 1) * s.group_channels(); ++c) {
        offset[c] = slope / count * rstd[group] * rstd[group];
        plain[c] = level / count * rstd[group];
      }
    }
    repeat(offset, s);
    repeat(plain, s);
    each_row(s, [&](int64_t begin, int64_t n_row) {
      const T* __restrict in = x + begin;
      T* __restrict out = dx + begin;
      const auto write = [&](const auto* __restrict h) {
        if (accumulate)
          for (int64_t i = 0; i < n_row; ++i)
            out[i] = static_cast<T>(static_cast<C>(out[i]) +
                                    (static_cast<C>(h[i]) * gain[i] - (static_cast<C>(in[i]) - centre[i]) * offset[i] - plain[i]));
        else
          for (int64_t i = 0; i < n_row; ++i)
            out[i] = static_cast<T>(static_cast<C>(h[i]) * gain[i] - (static_cast<C>(in[i]) - centre[i]) * offset[i] - plain[i]);
      };
      if (before != nullptr)
        write(before + begin);
      else
        write(grad + begin);
    });
  }
};

}  // namespace

GroupNormKernels& group_norm_kernels() {
  static CpuGroupNormKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
