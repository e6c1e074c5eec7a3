// The rows of the table of op cases (see op_cases.h). Structured operations first; elementwise ones come from the list.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "runtime/ops/conv.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/group_norm.h"
#include "runtime/ops/image.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/shape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/op_cases.h"

namespace rz::test {

namespace {

using Tensors = std::vector<Tensor>;
using Values = std::vector<double>;

// --- naive references -------------------------------------------------------------------------------------------------------

size_t at(const Shape& shape, std::initializer_list<int64_t> index) {
  int64_t flat = 0;
  int d = 0;
  for (const int64_t i : index) flat = flat * shape[d++] + i;
  return static_cast<size_t>(flat);
}

// f over the elements of the output shape, each operand read with broadcasting.
Values broadcast(const Tensor& a, const Tensor& b, double (*f)(double, double)) {
  const Shape shape = broadcast_shapes(a.shape(), b.shape(), "reference");
  const Values x = values_of(a.view_broadcast(shape)), y = values_of(b.view_broadcast(shape));
  Values out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = f(x[i], y[i]);
  return out;
}

// [A, M, K] x [A, K, N].
Values batched_product(const Tensor& a, const Tensor& b) {
  const Values x = values_of(a), y = values_of(b);
  const int64_t batch = a.size(0), m = a.size(1), k = a.size(2), n = b.size(2);
  Values out(static_cast<size_t>(batch * m * n));
  for (int64_t s = 0; s < batch; ++s)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t p = 0; p < k; ++p)
          out[static_cast<size_t>((s * m + i) * n + j)] += x[at(a.shape(), {s, i, p})] * y[at(b.shape(), {s, p, j})];
  return out;
}

// Applies f to the values of every line of x [A, R, B] along its middle dimension; f gives one or R values.
Values along_middle(const Tensor& x, const std::function<Values(const Values&)>& f) {
  const Values v = values_of(x);
  const int64_t a = x.size(0), r = x.size(1), b = x.size(2);
  Values out;
  size_t per_line = 0;
  for (int64_t i = 0; i < a; ++i)
    for (int64_t j = 0; j < b; ++j) {
      Values line;
      for (int64_t k = 0; k < r; ++k) line.push_back(v[at(x.shape(), {i, k, j})]);
      const Values result = f(line);
      per_line = result.size();
      out.resize(static_cast<size_t>(a * b) * per_line);
      for (size_t k = 0; k < per_line; ++k)
        out[(static_cast<size_t>(i) * per_line + k) * static_cast<size_t>(b) + static_cast<size_t>(j)] = result[k];
    }
  return out;
}

// Convolution by its definition: x [N, H, W, I], w [O, KH, KW, I]; depthwise w [KH, KW, C] as [C, KH, KW, 1] on single channels.
Values convolution(const Tensor& x, const Tensor& w, const Tensor& bias, int64_t stride, int64_t padding) {
  const bool depthwise = w.rank() == 3;
  const Values v = values_of(x), k = values_of(w), b = bias.defined() ? values_of(bias) : Values();
  const int64_t out = depthwise ? w.size(2) : w.size(0), kh = w.size(-3), kw = w.size(-2);
  const int64_t rows = (x.size(1) + 2 * padding - kh) / stride + 1, columns = (x.size(2) + 2 * padding - kw) / stride + 1;
  Values y;
  for (int64_t n = 0; n < x.size(0); ++n)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t o = 0; o < out; ++o) {
          double sum = b.empty() ? 0 : b[static_cast<size_t>(o)];
          for (int64_t r = 0; r < kh; ++r)
            for (int64_t q = 0; q < kw; ++q)
              for (int64_t c = depthwise ? o : 0; c < (depthwise ? o + 1 : x.size(3)); ++c) {
                const int64_t row = i * stride + r - padding, column = j * stride + q - padding;
                if (row < 0 || row >= x.size(1) || column < 0 || column >= x.size(2)) continue;
                sum += v[at(x.shape(), {n, row, column, c})] * (depthwise ? k[at(w.shape(), {r, q, c})] : k[at(w.shape(), {o, r, q, c})]);
              }
          y.push_back(sum);
        }
  return y;
}

// Every window of x [N, H, W, C]: f of its values.
Values windows(const Tensor& x, int64_t size, int64_t stride, const std::function<double(const Values&)>& f) {
  const Values v = values_of(x);
  Values y;
  for (int64_t n = 0; n < x.size(0); ++n)
    for (int64_t i = 0; i + size <= x.size(1); i += stride)
      for (int64_t j = 0; j + size <= x.size(2); j += stride)
        for (int64_t c = 0; c < x.size(3); ++c) {
          Values window;
          for (int64_t r = 0; r < size; ++r)
            for (int64_t q = 0; q < size; ++q) window.push_back(v[at(x.shape(), {n, i + r, j + q, c})]);
          y.push_back(f(window));
        }
  return y;
}

double sum_of(const Values& v) { return std::accumulate(v.begin(), v.end(), 0.0); }
double mean_of(const Values& v) { return sum_of(v) / static_cast<double>(v.size()); }
double variance_of(const Values& v, double correction) {
  double s = 0;
  for (const double x : v) s += (x - mean_of(v)) * (x - mean_of(v));
  return s / (static_cast<double>(v.size()) - correction);
}

// Group norm by its definition; an undefined parameter is 1 or 0.
Values group_normalized(const Tensor& x, int64_t groups, double epsilon, bool silu, const Tensor& weight, const Tensor& bias,
                        const Tensor& scale, const Tensor& shift) {
  const Values v = values_of(x);
  const auto samples = static_cast<size_t>(x.size(0)), channels = static_cast<size_t>(x.size(-1)), pixels = v.size() / samples / channels;
  const size_t width = channels / static_cast<size_t>(groups);
  const auto parameter = [](const Tensor& t, size_t i, double missing) { return t.defined() ? values_of(t)[i] : missing; };
  Values y(v.size());
  for (size_t n = 0; n < samples; ++n)
    for (size_t g = 0; g < channels; g += width) {
      Values group;
      for (size_t p = 0; p < pixels; ++p)
        for (size_t c = g; c < g + width; ++c) group.push_back(v[(n * pixels + p) * channels + c]);
      for (size_t p = 0; p < pixels; ++p)
        for (size_t c = g; c < g + width; ++c) {
          const size_t i = (n * pixels + p) * channels + c;
          const double normal = (v[i] - mean_of(group)) / std::sqrt(variance_of(group, 0) + epsilon);
          const double z = (normal * parameter(weight, c, 1) + parameter(bias, c, 0)) * (1 + parameter(scale, n * channels + c, 0)) +
                           parameter(shift, n * channels + c, 0);
          y[i] = silu ? z / (1 + std::exp(-z)) : z;
        }
    }
  return y;
}

// --- elementwise: an independent formula for every name of the list ----------------------------------------------------------

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double gelu_erf(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

const std::map<std::string, double (*)(double)>& unary_formulas() {
  static const std::map<std::string, double (*)(double)> table = {
      {"neg", [](double x) { return -x; }},
      {"abs", [](double x) { return std::abs(x); }},
      {"sign", [](double x) { return static_cast<double>((x > 0) - (x < 0)); }},
      {"floor", [](double x) { return std::floor(x); }},
      {"round", [](double x) { return std::nearbyint(x); }},
      {"sqrt", [](double x) { return std::sqrt(x); }},
      {"rsqrt", [](double x) { return 1 / std::sqrt(x); }},
      {"square", [](double x) { return x * x; }},
      {"reciprocal", [](double x) { return 1 / x; }},
      {"relu", [](double x) { return std::max(x, 0.0); }},
      {"relu_squared", [](double x) { return std::max(x, 0.0) * std::max(x, 0.0); }},
      {"exp", [](double x) { return std::exp(x); }},
      {"expm1", [](double x) { return std::expm1(x); }},
      {"log", [](double x) { return std::log(x); }},
      {"log1p", [](double x) { return std::log1p(x); }},
      {"sin", [](double x) { return std::sin(x); }},
      {"cos", [](double x) { return std::cos(x); }},
      {"tanh", [](double x) { return std::tanh(x); }},
      {"erf", [](double x) { return std::erf(x); }},
      {"sigmoid", sigmoid},
      {"log_sigmoid", [](double x) { return -std::log(1 + std::exp(-x)); }},
      {"silu", [](double x) { return x * sigmoid(x); }},
      {"softplus", [](double x) { return std::log(1 + std::exp(x)); }},
      {"gelu", gelu},
      {"gelu_erf", gelu_erf},
  };
  return table;
}

const std::map<std::string, double (*)(double, double, double)>& scaled_formulas() {
  static const std::map<std::string, double (*)(double, double, double)> table = {
      {"scale", [](double x, double p, double) { return x * p; }},
      {"shift", [](double x, double p, double) { return x + p; }},
      {"power", [](double x, double p, double) { return std::pow(x, p); }},
      {"clamp", [](double x, double low, double high) { return std::clamp(x, low, high); }},
      {"leaky_relu", [](double x, double p, double) { return x < 0 ? p * x : x; }},
      {"elu", [](double x, double p, double) { return x < 0 ? p * (std::exp(x) - 1) : x; }},
  };
  return table;
}

const std::map<std::string, double (*)(double, double)>& binary_formulas() {
  static const std::map<std::string, double (*)(double, double)> table = {
      {"add", [](double a, double b) { return a + b; }},
      {"sub", [](double a, double b) { return a - b; }},
      {"mul", [](double a, double b) { return a * b; }},
      {"div", [](double a, double b) { return a / b; }},
      {"pow", [](double a, double b) { return std::pow(a, b); }},
      {"maximum", [](double a, double b) { return std::max(a, b); }},
      {"minimum", [](double a, double b) { return std::min(a, b); }},
      {"bias_gelu", [](double a, double b) { return gelu(a + b); }},
      {"bias_gelu_erf", [](double a, double b) { return gelu_erf(a + b); }},
      {"silu_mul", [](double a, double b) { return a * sigmoid(a) * b; }},
  };
  return table;
}

void add_elementwise(std::vector<OpCase>& rows) {
  const auto add_unary = [&](const std::string& name, Tensor (*op)(const Tensor&), double low, double high) {
    rows.push_back({name,
                    [op](const Tensors& in) { return op(in[0]); },
                    {{{3, 23}, low, high}},
                    [f = unary_formulas().at(name)](const Tensors& in) {
                      Values out = values_of(in[0]);
                      for (double& x : out) x = f(x);
                      return out;
                    }});
  };
#define RZ_ROW(name, Functor, low, high) add_unary(#name, ops::name, low, high);
  RZ_UNARY_OPS(RZ_ROW)
#undef RZ_ROW

  const auto add_scaled = [&](const std::string& name, std::function<Tensor(const Tensor&)> op, double low, double high, double p0,
                              double p1) {
    rows.push_back({name,
                    [op](const Tensors& in) { return op(in[0]); },
                    {{{5, 13}, low, high}},
                    [f = scaled_formulas().at(name), p0, p1](const Tensors& in) {
                      Values out = values_of(in[0]);
                      for (double& x : out) x = f(x, p0, p1);
                      return out;
                    }});
  };
  add_scaled(
      "scale", [](const Tensor& x) { return ops::scale(x, 1.75); }, -2, 2, 1.75, 0);
  add_scaled(
      "shift", [](const Tensor& x) { return ops::shift(x, 0.75); }, -2, 2, 0.75, 0);
  add_scaled(
      "power", [](const Tensor& x) { return ops::power(x, 1.7); }, 0.3, 3, 1.7, 0);
  add_scaled(
      "power", [](const Tensor& x) { return ops::power(x, 2); }, 0.3, 3, 2, 0);
  add_scaled(
      "power", [](const Tensor& x) { return ops::power(x, -0.5); }, 0.3, 3, -0.5, 0);
  add_scaled(
      "clamp", [](const Tensor& x) { return ops::clamp(x, -1, 0.5); }, -2, 2, -1, 0.5);
  add_scaled(
      "leaky_relu", [](const Tensor& x) { return ops::leaky_relu(x, 0.2); }, -2, 2, 0.2, 0);
  add_scaled(
      "elu", [](const Tensor& x) { return ops::elu(x, 1.3); }, -2, 2, 1.3, 0);

  const auto add_binary = [&](const std::string& name, Tensor (*op)(const Tensor&, const Tensor&), double low, double high) {
    const std::pair<Shape, Shape> shapes[] = {{{4, 17}, {4, 17}}, {{2, 3, 7}, {7}}, {{2, 3, 5}, {2, 1, 5}}, {{6}, {}}, {{3, 1}, {1, 4}}};
    for (const auto& [a, b] : shapes)
      rows.push_back({fmt::format("{} {} {}", name, a.str(), b.str()),
                      [op](const Tensors& in) { return op(in[0], in[1]); },
                      {{a, low, high}, {b, low, high}},
                      [f = binary_formulas().at(name)](const Tensors& in) { return broadcast(in[0], in[1], f); }});
  };
#define RZ_ROW(name, Functor, low, high) add_binary(#name, ops::name, low, high);
  RZ_BINARY_OPS(RZ_ROW)
#undef RZ_ROW
}

// --- structured operations: add rows here ------------------------------------------------------------------------------------

const Tensor& mask() {
  static const Tensor m = Tensor::of<uint8_t>({3, 4}, {1, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0});
  return m;
}

void add_convolutions(std::vector<OpCase>& rows) {
  const auto dense = [&](const std::string& name, Shape x, Shape w, ConvWindow window, bool bias) {
    std::vector<OpInput> inputs{{x}, {w}};
    if (bias) inputs.push_back({{w[0]}});
    rows.push_back({name, [=](const Tensors& in) { return ops::conv2d(in[0], in[1], bias ? in[2] : Tensor(), window); }, inputs,
                    [=](const Tensors& in) { return convolution(in[0], in[1], bias ? in[2] : Tensor(), window.stride, window.padding); }});
  };
  dense("conv2d 3x3", {2, 5, 4, 3}, {5, 3, 3, 3}, {1, 1}, true);
  dense("conv2d 3x3, many channels", {2, 3, 15, 19}, {35, 3, 3, 19}, {1, 1}, true);
  dense("conv2d 3x3 stride 2", {2, 7, 6, 3}, {4, 3, 3, 3}, {2, 1}, true);
  dense("conv2d 3x3 stride 2, many channels", {1, 5, 33, 18}, {17, 3, 3, 18}, {2, 1}, false);
  dense("conv2d 5x5", {1, 6, 7, 2}, {3, 5, 5, 2}, {1, 2}, false);
  dense("conv2d 5x5 stride 2", {2, 8, 5, 2}, {3, 5, 5, 2}, {2, 2}, true);
  dense("conv2d 5x5 without padding", {1, 6, 5, 2}, {2, 5, 5, 2}, {1, 0}, true);
  dense("conv2d 1x1", {2, 3, 4, 5}, {6, 1, 1, 5}, {1, 0}, true);
  dense("conv2d 1x1 stride 2", {2, 5, 4, 3}, {4, 1, 1, 3}, {2, 0}, true);
  dense("conv2d patches", {2, 6, 6, 1}, {7, 3, 3, 1}, {3, 0}, true);
  dense("conv2d 2x3 stride 3, wide padding", {1, 4, 5, 2}, {3, 2, 3, 2}, {3, 3}, true);
  for (const auto& [name, kernel, padding] : {std::tuple{"conv2d 3x3 with relu", int64_t{3}, int64_t{1}}, {"conv2d 1x1 with relu", 1, 0}}) {
    const ConvWindow window{1, padding};
    rows.push_back({name,
                    [=](const Tensors& in) { return ops::conv2d(in[0], in[1], in[2], window, ConvActivation::relu); },
                    {{{2, 4, 5, 3}}, {{20, kernel, kernel, 3}}, {{20}}},
                    [=](const Tensors& in) {
                      Values y = convolution(in[0], in[1], in[2], 1, window.padding);
                      for (double& v : y) v = std::max(v, 0.0);
                      return y;
                    }});
    rows.back().any_dtype = false;  // in 16 bits a sum near 0 changes sides
  }
  const auto depthwise = [&](const std::string& name, Shape x, Shape w, ConvWindow window, bool bias) {
    std::vector<OpInput> inputs{{x}, {w}};
    if (bias) inputs.push_back({{w[2]}});
    rows.push_back({name, [=](const Tensors& in) { return ops::depthwise_conv2d(in[0], in[1], bias ? in[2] : Tensor(), window); }, inputs,
                    [=](const Tensors& in) { return convolution(in[0], in[1], bias ? in[2] : Tensor(), window.stride, window.padding); }});
  };
  depthwise("depthwise_conv2d 3x3", {2, 4, 5, 7}, {3, 3, 7}, {1, 1}, true);
  depthwise("depthwise_conv2d 3x3 stride 2", {2, 5, 6, 3}, {3, 3, 3}, {2, 1}, false);
  depthwise("depthwise_conv2d 5x5", {1, 6, 5, 67}, {5, 5, 67}, {1, 2}, true);
}

void add_norms(std::vector<OpCase>& rows) {
  const auto group = [&](const std::string& name, Shape x, int64_t groups, bool silu, bool affine, bool conditioned) {
    const int64_t channels = x[-1];
    std::vector<OpInput> inputs{{x, -2, 3}};
    if (affine) inputs.insert(inputs.end(), {{{channels}, 0.5, 1.5}, {{channels}}});
    if (conditioned) inputs.insert(inputs.end(), {{{x[0], channels}}, {{x[0], channels}}});
    const auto input = [](const Tensors& in, bool has, size_t i) { return has ? in[i] : Tensor(); };
    const size_t after = affine ? 3 : 1;
    rows.push_back({name,
                    [=](const Tensors& in) {
                      return ops::group_norm(in[0], input(in, affine, 1), input(in, affine, 2), {groups, 1e-3, silu},
                                             input(in, conditioned, after), input(in, conditioned, after + 1));
                    },
                    inputs,
                    [=](const Tensors& in) {
                      return group_normalized(in[0], groups, 1e-3, silu, input(in, affine, 1), input(in, affine, 2),
                                              input(in, conditioned, after), input(in, conditioned, after + 1));
                    }});
    rows.back().precision = 32;
  };
  group("group_norm", {2, 3, 4, 6}, 3, false, true, false);
  group("group_norm, bare", {2, 3, 2, 4}, 2, false, false, false);
  group("group_norm with silu", {2, 3, 3, 6}, 2, true, true, false);
  group("group_norm with silu, scale and shift", {3, 5, 7, 8}, 4, true, true, true);
  group("group_norm with scale and shift alone", {2, 5, 6}, 6, false, false, true);
  group("group_norm of many channels", {1, 2, 2, 300}, 10, true, true, true);
  rows.push_back({"layer_norm_modulate",
                  [](const Tensors& in) { return ops::layer_norm_modulate(in[0], in[1], in[2], 1e-3); },
                  {{{3, 4, 5}, -2, 3}, {{3, 5}}, {{3, 5}}},
                  [](const Tensors& in) {
                    Values v = values_of(in[0]);
                    const Values scale = values_of(in[1]), shift = values_of(in[2]);
                    for (size_t row = 0; row < v.size(); row += 5) {
                      const Values x(v.begin() + static_cast<std::ptrdiff_t>(row), v.begin() + static_cast<std::ptrdiff_t>(row) + 5);
                      for (size_t i = 0; i < 5; ++i)
                        v[row + i] = (x[i] - mean_of(x)) / std::sqrt(variance_of(x, 0) + 1e-3) * (1 + scale[row / 20 * 5 + i]) +
                                     shift[row / 20 * 5 + i];
                    }
                    return v;
                  }});
  rows.back().precision = 32;
  rows.push_back({"add_gated",
                  [](const Tensors& in) { return ops::add_gated(in[0], in[1], in[2]); },
                  {{{3, 4, 5}}, {{3, 4, 5}}, {{3, 5}}},
                  [](const Tensors& in) {
                    Values v = values_of(in[0]);
                    const Values h = values_of(in[1]), gate = values_of(in[2]);
                    for (size_t i = 0; i < v.size(); ++i) v[i] += h[i] * gate[i / 20 * 5 + i % 5];
                    return v;
                  }});
}

void add_images(std::vector<OpCase>& rows) {
  const Shape images{2, 6, 5, 3};
  const auto largest = [](const Values& w) { return *std::max_element(w.begin(), w.end()); };
  rows.push_back({"average_pool",
                  [](const Tensors& in) { return ops::average_pool(in[0]); },
                  {{images}},
                  [](const Tensors& in) { return windows(in[0], 2, 2, mean_of); }});
  rows.push_back({"average_pool of 3, overlapping",
                  [](const Tensors& in) {
                    return ops::average_pool(in[0], {3, 1});
                  },
                  {{images}},
                  [](const Tensors& in) { return windows(in[0], 3, 1, mean_of); }});
  rows.push_back({"max_pool",
                  [](const Tensors& in) { return ops::max_pool(in[0]); },
                  {{images}},
                  [=](const Tensors& in) { return windows(in[0], 2, 2, largest); }});
  rows.push_back({"max_pool of 3, overlapping",
                  [](const Tensors& in) {
                    return ops::max_pool(in[0], {3, 2});
                  },
                  {{images}},
                  [=](const Tensors& in) { return windows(in[0], 3, 2, largest); }});
  rows.push_back({"upsample",
                  [](const Tensors& in) { return ops::upsample(in[0]); },
                  {{{2, 3, 2, 5}}},
                  [](const Tensors& in) {
                    const Values v = values_of(in[0]);
                    Values y;
                    for (int64_t n = 0; n < 2; ++n)
                      for (int64_t i = 0; i < 6; ++i)
                        for (int64_t j = 0; j < 4; ++j)
                          for (int64_t c = 0; c < 5; ++c) y.push_back(v[at(in[0].shape(), {n, i / 2, j / 2, c})]);
                    return y;
                  }});
  rows.push_back({"space_to_depth",
                  [](const Tensors& in) { return ops::space_to_depth(in[0], 2); },
                  {{{2, 4, 6, 3}}},
                  [](const Tensors& in) {
                    const Values v = values_of(in[0]);
                    Values y;
                    for (int64_t n = 0; n < 2; ++n)
                      for (int64_t i = 0; i < 2; ++i)
                        for (int64_t j = 0; j < 3; ++j)
                          for (int64_t r = 0; r < 2; ++r)
                            for (int64_t q = 0; q < 2; ++q)
                              for (int64_t c = 0; c < 3; ++c) y.push_back(v[at(in[0].shape(), {n, 2 * i + r, 2 * j + q, c})]);
                    return y;
                  }});
  rows.push_back({"depth_to_space undoes space_to_depth",
                  [](const Tensors& in) { return ops::depth_to_space(ops::space_to_depth(in[0], 3), 3); },
                  {{{2, 3, 6, 2}}},
                  [](const Tensors& in) { return values_of(in[0]); }});
}

void add_structured(std::vector<OpCase>& rows) {
  const std::vector<OpInput> cube = {{{3, 5, 4}}};
  const auto reduced = [](double (*f)(const Values&)) {
    return [f](const Tensors& in) { return along_middle(in[0], [f](const Values& v) { return Values{f(v)}; }); };
  };
  rows.push_back({"sum middle", [](const Tensors& in) { return ops::sum(in[0], {1}); }, cube, reduced(sum_of)});
  rows.push_back({"mean middle, keepdim", [](const Tensors& in) { return ops::mean(in[0], {-2}, true); }, cube, reduced(mean_of)});
  rows.push_back({"max middle", [](const Tensors& in) { return ops::max(in[0], {1}); }, cube,
                  reduced([](const Values& v) { return *std::max_element(v.begin(), v.end()); })});
  rows.push_back({"min middle", [](const Tensors& in) { return ops::min(in[0], {1}); }, cube,
                  reduced([](const Values& v) { return *std::min_element(v.begin(), v.end()); })});
  rows.push_back({"var middle", [](const Tensors& in) { return ops::var(in[0], {1}); }, cube,
                  reduced([](const Values& v) { return variance_of(v, 1); })});
  rows.push_back({"var of all", [](const Tensors& in) { return ops::var(in[0], {}, false, 0); }, cube,
                  [](const Tensors& in) { return Values{variance_of(values_of(in[0]), 0)}; }});
  rows.push_back({"sum of all", [](const Tensors& in) { return ops::sum(in[0]); }, cube,
                  [](const Tensors& in) { return Values{sum_of(values_of(in[0]))}; }});
  rows.push_back({"sum over the outer dimensions",
                  [](const Tensors& in) {
                    return ops::sum(in[0], {0, 2});
                  },
                  cube,
                  [](const Tensors& in) {
                    Values out(5);
                    const Values v = values_of(in[0]);
                    for (size_t i = 0; i < v.size(); ++i) out[i / 4 % 5] += v[i];
                    return out;
                  }});
  rows.push_back({"cumsum", [](const Tensors& in) { return ops::cumsum(in[0], 1); }, cube,
                  [](const Tensors& in) {
                    return along_middle(in[0], [](const Values& v) {
                      Values out(v.size());
                      std::partial_sum(v.begin(), v.end(), out.begin());
                      return out;
                    });
                  }});
  rows.push_back({"matmul",
                  [](const Tensors& in) { return ops::matmul(in[0], in[1]); },
                  {{{2, 3, 7}}, {{2, 7, 5}}},
                  [](const Tensors& in) { return batched_product(in[0], in[1]); }});
  rows.push_back({"matmul, both transposed, scaled",
                  [](const Tensors& in) {
                    return ops::matmul(in[0], in[1], {true, true}, 0.5);
                  },
                  {{{2, 7, 3}}, {{2, 5, 7}}},
                  [](const Tensors& in) {
                    Values out = batched_product(contiguous_copy(in[0].view_transpose(1, 2)), contiguous_copy(in[1].view_transpose(1, 2)));
                    for (double& x : out) x *= 0.5;
                    return out;
                  }});
  rows.push_back({"matmul, first transposed",
                  [](const Tensors& in) {
                    return ops::matmul(in[0], in[1], {true, false});
                  },
                  {{{2, 7, 3}}, {{2, 7, 5}}},
                  [](const Tensors& in) { return batched_product(contiguous_copy(in[0].view_transpose(1, 2)), in[1]); }});
  rows.push_back({"matmul, second transposed",
                  [](const Tensors& in) {
                    return ops::matmul(in[0], in[1], {false, true});
                  },
                  {{{2, 3, 7}}, {{2, 5, 7}}},
                  [](const Tensors& in) { return batched_product(in[0], contiguous_copy(in[1].view_transpose(1, 2))); }});
  rows.push_back({"matmul, one matrix for the batch",
                  [](const Tensors& in) { return ops::matmul(in[0], in[1]); },
                  {{{4, 3, 6}}, {{6, 5}}},
                  [](const Tensors& in) {
                    return batched_product(in[0], contiguous_copy(in[1].view_broadcast({4, 6, 5})));
                  }});
  rows.push_back({"linear",
                  [](const Tensors& in) { return ops::linear(in[0], in[1], in[2]); },
                  {{{2, 3, 6}}, {{5, 6}}, {{5}}},
                  [](const Tensors& in) {
                    Values out = batched_product(in[0], contiguous_copy(in[1].view_transpose(0, 1).view_broadcast({2, 6, 5})));
                    const Values bias = values_of(in[2]);
                    for (size_t i = 0; i < out.size(); ++i) out[i] += bias[i % 5];
                    return out;
                  }});
  rows.push_back(
      {"linear without bias",
       [](const Tensors& in) { return ops::linear(in[0], in[1]); },
       {{{4, 6}}, {{5, 6}}},
       [](const Tensors& in) {
         return batched_product(in[0].view_reshape({1, 4, 6}), contiguous_copy(in[1].view_transpose(0, 1)).view_reshape({1, 6, 5}));
       }});
  add_convolutions(rows);
  add_norms(rows);
  add_images(rows);
  rows.push_back({"reshape",
                  [](const Tensors& in) {
                    return ops::reshape(in[0], {-1, 10});
                  },
                  cube, [](const Tensors& in) { return values_of(in[0]); }});
  rows.push_back({"transpose then slice", [](const Tensors& in) { return ops::slice(ops::transpose(in[0], 0, 2), 1, 1, 4); }, cube,
                  [](const Tensors& in) { return values_of(in[0].view_transpose(0, 2).view_slice(1, 1, 4)); }});
  rows.push_back({"permute",
                  [](const Tensors& in) {
                    return ops::permute(in[0], {2, 0, 1});
                  },
                  cube,
                  [](const Tensors& in) {
                    return values_of(in[0].view_permute({2, 0, 1}));
                  }});
  rows.push_back({"overlapping slices", [](const Tensors& in) { return ops::add(ops::slice(in[0], 1, 0, 4), ops::slice(in[0], 1, 1, 5)); },
                  cube,
                  [](const Tensors& in) {
                    return broadcast(in[0].view_slice(1, 0, 4), in[0].view_slice(1, 1, 5), [](double a, double b) { return a + b; });
                  }});
  rows.push_back({"broadcast_to",
                  [](const Tensors& in) {
                    return ops::broadcast_to(in[0], {2, 3, 4});
                  },
                  {{{3, 1}}},
                  [](const Tensors& in) {
                    return values_of(in[0].view_broadcast({2, 3, 4}));
                  }});
  rows.push_back({"concat",
                  [](const Tensors& in) {
                    return ops::concat({in[0], in[1], in[0]}, 1);
                  },
                  {{{2, 2}}, {{2, 3}}},
                  [](const Tensors& in) {
                    const Values a = values_of(in[0]), b = values_of(in[1]);
                    return Values{a[0], a[1], b[0], b[1], b[2], a[0], a[1], a[2], a[3], b[3], b[4], b[5], a[2], a[3]};
                  }});
  rows.push_back({"stack",
                  [](const Tensors& in) {
                    return ops::stack({in[0], in[1]}, -1);
                  },
                  {{{3}}, {{3}}},
                  [](const Tensors& in) {
                    const Values a = values_of(in[0]), b = values_of(in[1]);
                    return Values{a[0], b[0], a[1], b[1], a[2], b[2]};
                  }});
  rows.push_back({"split",
                  [](const Tensors& in) {
                    const auto parts = ops::split(in[0], {1, 3}, 2);
                    return ops::mul(parts[0], parts[1]);
                  },
                  cube,
                  [](const Tensors& in) {
                    return broadcast(in[0].view_slice(2, 0, 1), in[0].view_slice(2, 1, 4), [](double a, double b) { return a * b; });
                  }});
  rows.push_back({"gather",
                  [](const Tensors& in) { return ops::gather(in[0], 1, in[1]); },
                  {{{2, 3}}, {{}, 0, 0, Tensor::of<int64_t>({2, 4}, {0, 2, 2, 1, 1, 1, 0, 2})}},
                  [](const Tensors& in) {
                    const Values v = values_of(in[0]);
                    return Values{v[0], v[2], v[2], v[1], v[4], v[4], v[3], v[5]};
                  }});
  rows.push_back({"where",
                  [](const Tensors& in) { return ops::where(in[0], in[1], in[2]); },
                  {{{}, 0, 0, mask()}, {{3, 4}}, {{4}}},
                  [](const Tensors& in) {
                    const Values c = values_of(in[0]), a = values_of(in[1]), b = values_of(in[2]);
                    Values out(12);
                    for (size_t i = 0; i < 12; ++i) out[i] = c[i] != 0 ? a[i] : b[i % 4];
                    return out;
                  }});
  rows.push_back({"masked_fill",
                  [](const Tensors& in) { return ops::masked_fill(in[1], in[0], -3); },
                  {{{}, 0, 0, mask()}, {{2, 3, 4}}},
                  [](const Tensors& in) {
                    const Values c = values_of(in[0]);
                    Values out = values_of(in[1]);
                    for (size_t i = 0; i < out.size(); ++i) out[i] = c[i % 12] != 0 ? -3 : out[i];
                    return out;
                  }});
}

}  // namespace

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> rows = [] {
    std::vector<OpCase> all;
    add_elementwise(all);
    add_structured(all);
    return all;
  }();
  return rows;
}

}  // namespace rz::test
