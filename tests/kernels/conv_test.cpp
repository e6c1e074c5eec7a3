// Convolutions against their definition in double, over the shapes where Winograd's filtering and the direct sums meet: odd extents, every
// padding, channels that fill no vector. What the bits may depend on, and how exact the filtering is.
#include "runtime/kernels/conv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "tests/support/gradcheck.h"

namespace rz {
namespace {

using test::random_tensor;
using test::values_of;
using Values = std::vector<double>;

ConvKernels& kernels() { return *backend({}).conv; }

struct Sizes {
  int64_t images, height, width, in, out, padding;
  int64_t stride = 1;

  ConvWindow window() const { return {stride, padding}; }
  Shape x() const { return {images, height, width, in}; }
  Shape weight() const { return {out, 3, 3, in}; }
  Shape y() const { return {images, window().output_extent(height, 3), window().output_extent(width, 3), out}; }
  std::string str() const {
    return fmt::format("{}x{}x{}, {} to {} channels, padding {}, stride {}", images, height, width, in, out, padding, stride);
  }
};

// Odd and even extents, one tile, half tiles; few and many channels on either side; one image and many.
const Sizes kSizes[] = {{1, 2, 2, 16, 16, 1},    {2, 7, 7, 32, 48, 1},   {1, 8, 6, 17, 35, 0},    {3, 5, 9, 40, 20, 2},
                        {1, 1, 13, 33, 16, 1},   {5, 6, 6, 64, 70, 1},   {1, 16, 14, 129, 33, 1}, {9, 4, 4, 16, 64, 1},
                        {2, 3, 3, 24, 24, 0},    {1, 10, 10, 20, 17, 3}, {2, 6, 7, 15, 32, 1},    {2, 6, 7, 32, 9, 1},
                        {2, 9, 8, 32, 32, 1, 2}, {2, 5, 5, 1, 32, 1},    {40, 8, 8, 16, 16, 1}};

// The three passes by the definition, each in double. A term is weight[o, r, s, c] x[n, i stride + r - padding, j stride + s - padding, c].
template <class Term>
void each_term(const Sizes& s, Term term) {
  const Shape y = s.y();
  for (int64_t n = 0; n < s.images; ++n)
    for (int64_t i = 0; i < y[1]; ++i)
      for (int64_t j = 0; j < y[2]; ++j)
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = i * s.stride + tap / 3 - s.padding, column = j * s.stride + tap % 3 - s.padding;
          if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
          for (int64_t o = 0; o < s.out; ++o)
            for (int64_t c = 0; c < s.in; ++c)
              term(static_cast<size_t>(((n * y[1] + i) * y[2] + j) * s.out + o), static_cast<size_t>((o * 9 + tap) * s.in + c),
                   static_cast<size_t>(((n * s.height + row) * s.width + column) * s.in + c));
        }
}

struct Passes {
  Values y, dx, dweight;
};

Passes defined(const Sizes& s, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& grad) {
  const Values from = values_of(x), w = values_of(weight), b = bias.defined() ? values_of(bias) : Values(static_cast<size_t>(s.out), 0.0),
               g = values_of(grad);
  Passes passes{Values(g.size()), Values(from.size()), Values(w.size())};
  for (size_t i = 0; i < g.size(); ++i) passes.y[i] = b[i % static_cast<size_t>(s.out)];
  each_term(s, [&](size_t at_y, size_t at_w, size_t at_x) {
    passes.y[at_y] += w[at_w] * from[at_x];
    passes.dx[at_x] += w[at_w] * g[at_y];
    passes.dweight[at_w] += g[at_y] * from[at_x];
  });
  return passes;
}

double root_mean_square(const Values& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum / static_cast<double>(v.size()));
}

// The root of the mean square of the error, as a part of that of the values.
double relative_error(Values got, const Values& want) {
  for (size_t i = 0; i < got.size(); ++i) got[i] -= want[i];
  return root_mean_square(got) / root_mean_square(want);
}
double relative_error(const Tensor& got, const Values& want) { return relative_error(values_of(got), want); }

double unit_roundoff(DType t) {
  switch (t) {
    case DType::f64:
      return 1.2e-16;
    case DType::f32:
      return 6.0e-8;
    case DType::f16:
      return 4.9e-4;
    default:
      return 3.9e-3;
  }
}

TEST(Convolution, EveryPassMatchesTheDefinition) {
  for (const DType type : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (const Sizes& s : kSizes) {
      const std::string what = fmt::format("{} {}", name(type), s.str());
      const Tensor x = random_tensor(s.x(), 1, -1, 1, type), weight = random_tensor(s.weight(), 2, -1, 1, type),
                   bias = random_tensor({s.out}, 3, -1, 1, type), grad = random_tensor(s.y(), 4, -1, 1, type);
      const Passes want = defined(s, x, weight, bias, grad);
      // A few roundings each; in 16 bits, the one of the result.
      const double bound = 16 * unit_roundoff(type);
      Tensor y = Tensor::full(s.y(), 99, type), dx = Tensor::full(s.x(), 99, type), dweight = Tensor::full(s.weight(), 99, type);
      kernels().forward(x, weight, bias, s.window(), ConvActivation::none, y);
      EXPECT_LT(relative_error(y, want.y), bound) << what;
      kernels().data_gradient(grad, weight, s.window(), dx, false);
      EXPECT_LT(relative_error(dx, want.dx), bound) << what;
      kernels().weight_gradient(grad, x, s.window(), dweight, false);
      EXPECT_LT(relative_error(dweight, want.dweight), bound) << what;

      // Added to what is there: twice the gradient.
      kernels().data_gradient(grad, weight, s.window(), dx, true);
      kernels().weight_gradient(grad, x, s.window(), dweight, true);
      Passes twice = want;
      for (double& v : twice.dx) v *= 2;
      for (double& v : twice.dweight) v *= 2;
      EXPECT_LT(relative_error(dx, twice.dx), bound) << what << " accumulated";
      EXPECT_LT(relative_error(dweight, twice.dweight), bound) << what << " accumulated";

      // ReLU changes nothing but the sign's side.
      Values rectified = values_of(y);
      for (double& v : rectified) v = std::max(v, 0.0);
      kernels().forward(x, weight, bias, s.window(), ConvActivation::relu, y);
      EXPECT_EQ(values_of(y), rectified) << what;

      // Without a bias.
      const Passes plain = defined(s, x, weight, {}, grad);
      kernels().forward(x, weight, {}, s.window(), ConvActivation::none, y);
      EXPECT_LT(relative_error(y, plain.y), bound) << what << " without bias";
      if (testing::Test::HasFailure()) return;
    }
}

// Direct sums in float32, a chain each, as the definition has them.
Passes direct(const Sizes& s, const Tensor& x, const Tensor& weight, const Tensor& grad) {
  const float *from = x.data<float>(), *w = weight.data<float>(), *g = grad.data<float>();
  std::vector<float> y(static_cast<size_t>(grad.numel())), dx(static_cast<size_t>(x.numel())), dweight(static_cast<size_t>(weight.numel()));
  each_term(s, [&](size_t at_y, size_t at_w, size_t at_x) {
    y[at_y] = std::fma(w[at_w], from[at_x], y[at_y]);
    dx[at_x] = std::fma(w[at_w], g[at_y], dx[at_x]);
    dweight[at_w] = std::fma(g[at_y], from[at_x], dweight[at_w]);
  });
  return {Values(y.begin(), y.end()), Values(dx.begin(), dx.end()), Values(dweight.begin(), dweight.end())};
}

// What the filtering costs: its transforms add rounding errors, its shorter sums have fewer.
TEST(Convolution, FilteringIsAboutAsExactAsDirectSums) {
  for (const auto& [in, out] : {std::pair{int64_t{64}, int64_t{64}}, {128, 32}}) {
    const Sizes s{2, 16, 16, in, out, 1};
    const Tensor x = random_tensor(s.x(), 1, -1, 1, DType::f32), weight = random_tensor(s.weight(), 2, -1, 1, DType::f32),
                 grad = random_tensor(s.y(), 4, -1, 1, DType::f32);
    const Passes want = defined(s, x, weight, {}, grad), sums = direct(s, x, weight, grad);
    Tensor y = Tensor::empty(s.y()), dx = Tensor::empty(s.x()), dweight = Tensor::empty(s.weight());
    kernels().forward(x, weight, {}, s.window(), ConvActivation::none, y);
    kernels().data_gradient(grad, weight, s.window(), dx, false);
    kernels().weight_gradient(grad, x, s.window(), dweight, false);
    const auto expect_exact = [&](const char* pass, const Tensor& got, const Values& chain, const Values& exact) {
      const double error = relative_error(values_of(got), exact), of_chain = relative_error(chain, exact);
      RecordProperty(fmt::format("{} of {} to {} channels", pass, in, out), fmt::format("{:.2e}, direct {:.2e}", error, of_chain));
      EXPECT_LT(error, 2 * of_chain) << pass << ", " << s.str();
    };
    expect_exact("forward", y, sums.y, want.y);
    expect_exact("data_gradient", dx, sums.dx, want.dx);
    expect_exact("weight_gradient", dweight, sums.dweight, want.dweight);
  }
}

std::vector<std::byte> bits_of(const Tensor& t, int64_t first_image = 0, int64_t images = -1) {
  const auto image = static_cast<size_t>(t.size_bytes() / static_cast<size_t>(t.size(0)));
  const auto* begin = t.raw_data() + static_cast<size_t>(first_image) * image;
  return {begin, begin + (images < 0 ? t.size_bytes() : static_cast<size_t>(images) * image)};
}

struct Bits {
  Tensor y, dx, dweight;
  Bits(const Sizes& s, const Tensor& x, const Tensor& weight, const Tensor& grad)
      : y(Tensor::empty(s.y(), x.dtype())), dx(Tensor::empty(s.x(), x.dtype())), dweight(Tensor::empty(s.weight(), x.dtype())) {
    kernels().forward(x, weight, {}, s.window(), ConvActivation::none, y);
    kernels().data_gradient(grad, weight, s.window(), dx, false);
    kernels().weight_gradient(grad, x, s.window(), dweight, false);
  }
};

TEST(Convolution, SameBitsForAnyThreads) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const Sizes& s : {Sizes{1, 13, 14, 32, 48, 1}, {2, 16, 16, 64, 64, 1}, {7, 8, 8, 160, 40, 0}, {30, 7, 7, 32, 130, 1}}) {
      const Tensor x = random_tensor(s.x(), 1, -1, 1, type), weight = random_tensor(s.weight(), 2, -1, 1, type),
                   grad = random_tensor(s.y(), 4, -1, 1, type);
      const Bits one(s, x, weight, grad);
      for (const int threads : {2, 3, 5}) {
        const RankContextScope scope(RankContext::make(0, threads));
        const Bits more(s, x, weight, grad);
        EXPECT_EQ(bits_of(more.y), bits_of(one.y)) << s.str() << " with " << threads << " threads";
        EXPECT_EQ(bits_of(more.dx), bits_of(one.dx)) << s.str() << " with " << threads << " threads";
        EXPECT_EQ(bits_of(more.dweight), bits_of(one.dweight)) << s.str() << " with " << threads << " threads";
      }
    }
}

// Whatever its place, whatever stands beside it, and however many threads there are.
TEST(Convolution, ASampleDoesNotDependOnTheOthers) {
  for (const Sizes& s : {Sizes{11, 7, 7, 20, 24, 1}, {5, 12, 11, 64, 64, 1}, {37, 4, 4, 32, 32, 1}}) {
    const Tensor x = random_tensor(s.x(), 1, -1, 1, DType::f32), weight = random_tensor(s.weight(), 2, -1, 1, DType::f32),
                 grad = random_tensor(s.y(), 4, -1, 1, DType::f32);
    const Bits whole(s, x, weight, grad);
    for (const int threads : {1, 3})
      for (int64_t first = 0; first < s.images; first += 2)
        for (const int64_t images : {int64_t{1}, std::min<int64_t>(3, s.images - first)}) {
          const RankContextScope scope(RankContext::make(0, threads));
          Sizes part = s;
          part.images = images;
          const Bits some(part, x.view_slice(0, first, first + images), weight, grad.view_slice(0, first, first + images));
          EXPECT_EQ(bits_of(some.y), bits_of(whole.y, first, images)) << s.str() << " from image " << first;
          EXPECT_EQ(bits_of(some.dx), bits_of(whole.dx, first, images)) << s.str() << " from image " << first;
        }
  }
}

// A dry run takes the same scratch and writes nothing.
TEST(Convolution, ADryRunAllocatesTheSame) {
  const Sizes s{3, 16, 16, 64, 96, 1};
  for (const int threads : {1, 3}) {
    size_t peak[2];
    for (const bool dry : {false, true}) {
      const auto context = dry ? RankContext::make_dry(0, threads) : RankContext::make(0, threads);
      const RankContextScope scope(context);
      const Tensor x = Tensor::empty(s.x()), weight = Tensor::empty(s.weight()), grad = Tensor::empty(s.y());
      if (!dry)
        for (const Tensor& t : {x, weight, grad}) std::fill_n(Tensor(t).data<float>(), t.numel(), 1.0f);
      const Bits passes(s, x, weight, grad);
      peak[dry ? 1 : 0] = static_cast<size_t>(context->memory().peak().by_category[static_cast<size_t>(Category::workspace)]);
    }
    EXPECT_EQ(peak[0], peak[1]) << threads << " threads";
    EXPECT_GT(peak[1], 0u);
  }
}

}  // namespace
}  // namespace rz
