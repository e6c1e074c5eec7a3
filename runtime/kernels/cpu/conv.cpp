// Convolution on the CPU: direct sums, and the choice of Winograd's filtering (conv_winograd.h) where it pays. Vocabulary:
//   line    the pixels of one image row
//   phase   with stride s, the pixels of a line whose number leaves a certain rest when divided by s: those that a tap sees in turn
//   panel   kMicroColumns output channels of the weights, laid out tap by tap
//   class   the pixels of the result that see the same taps. A forward pass has one; the data gradient with stride s has s x s, by
//           the rests of row and column: each is a convolution of the gradient with stride 1 and some of the taps
//
// Forward and data gradient: an image (or some rows of it) is copied with its zeros around it into the thread's scratch, transposed to
// [line][phase][channel][pixel]: there, neighbouring pixels of the result read neighbouring elements for every tap and channel.
// Weight gradient: images are copied with their zeros only; the taps and channels of a kernel row lie side by side as they are.
#include "runtime/kernels/conv.h"

#include <algorithm>
#include <vector>

#include "runtime/core/op_profile.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/conv_micro.h"
#include "runtime/kernels/cpu/conv_sizes.h"
#include "runtime/kernels/cpu/conv_winograd.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_pack.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

namespace {

constexpr int64_t kMultiplyAddsPerPiece = 1 << 18;  // below this a thread is not worth waking
constexpr int64_t kPixelsPerSum = 160;              // the weight gradient reads so many pixels of both images from the L1 cache
constexpr int64_t kPixelsPerCopy = 196;

int64_t floor_divide(int64_t x, int64_t y) { return x >= 0 ? x / y : -ceil_divide(-x, y); }

// to[c * to_step + i] = from[i * from_step + c] for i < count, c < channels. Writes whole vectors: zeros may go beyond `count`, over
// what follows, so lines and channels are written in rising order and the buffer has a vector of slack.
template <class T, class C>
void transpose_line(const T* from, int64_t from_step, int64_t count, int64_t channels, C* to, int64_t to_step) {
  constexpr int64_t lanes = kLanes<C>;
  if (count <= 0) return;
  if (channels < lanes) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i) to[c * to_step + i] = static_cast<C>(static_cast<compute_t<T>>(from[i * from_step + c]));
    return;
  }
  for (int64_t block = 0; block < channels; block += lanes) {
    const int64_t c = std::min(block, channels - lanes);
    for (int64_t start = 0; start < count; start += lanes) {
      // The last block of a long line overlaps the one before rather than the next channel.
      const int64_t i = count >= lanes ? std::min(start, count - lanes) : 0;
      const int64_t rows = std::min(lanes, count);
      Lanes<C> square[lanes] = {};
#pragma GCC unroll 16
      for (int64_t r = 0; r < lanes; ++r)
        if (r < rows) square[r] = load_lanes(from + (i + r) * from_step + c);
      transpose<C>(square);
#pragma GCC unroll 16
      for (int64_t q = 0; q < lanes; ++q) store_lanes<C>(to + (c + q) * to_step + i, square[q]);
    }
  }
}

// The pixels of the result that see the same taps: rows row0, row0 + step, .. (`rows` of them), the same for columns.
struct PixelClass {
  int64_t row0, column0, rows, columns;
  std::vector<int64_t> taps;    // kernel row * kernel width + kernel column
  std::vector<int32_t> offset;  // of each tap and channel, from the first element of the pixel's line
  int64_t panel_begin;          // of this class's panels, in rows
};

// A convolution as sums over panels. Result row i of a class reads lines i * line_step + .. of the copy, whose line 0 is image
// row first_row.
struct Plan {
  int64_t images, height, width, channels;  // of what is read
  int64_t result_height, result_width, result_channels, result_step;
  int64_t first_row, first_column, line_step;  // where the copy begins
  int64_t lines_seen;                          // by one row of the result
  int64_t phases, phase_width;
  int64_t rows;  // most rows of a class
  std::vector<PixelClass> classes;

  int64_t line_elements() const { return phases * channels * phase_width; }
};

Plan forward_plan(const ConvSizes& s) {
  Plan plan{};
  plan.images = s.images, plan.height = s.height, plan.width = s.width, plan.channels = s.in;
  plan.result_height = s.out_height, plan.result_width = s.out_width, plan.result_channels = s.out, plan.result_step = 1;
  plan.first_row = plan.first_column = -s.window.padding;
  plan.line_step = plan.phases = s.window.stride;
  plan.lines_seen = s.kernel_h;
  plan.phase_width = ceil_divide((s.out_width - 1) * s.window.stride + s.kernel_w, s.window.stride);
  plan.rows = s.out_height;
  PixelClass all{0, 0, s.out_height, s.out_width, {}, {}, 0};
  for (int64_t r = 0; r < s.kernel_h; ++r)
    for (int64_t q = 0; q < s.kernel_w; ++q)
      for (int64_t c = 0; c < s.in; ++c)
        all.offset.push_back(
            static_cast<int32_t>(r * plan.line_elements() + (q % s.window.stride * s.in + c) * plan.phase_width + q / s.window.stride));
  plan.classes.push_back(std::move(all));
  return plan;
}

// dx row h = stride i + a sees the gradient's rows i + (a + padding - r) / stride for the taps r that divide evenly.
Plan data_gradient_plan(const ConvSizes& s) {
  const int64_t stride = s.window.stride, padding = s.window.padding;
  const int64_t lowest_row = floor_divide(padding - (s.kernel_h - 1), stride);
  const int64_t lowest_column = floor_divide(padding - (s.kernel_w - 1), stride);
  const int64_t highest = (stride - 1 + padding) / stride;
  Plan plan{};
  plan.images = s.images, plan.height = s.out_height, plan.width = s.out_width, plan.channels = s.out;
  plan.result_height = s.height, plan.result_width = s.width, plan.result_channels = s.in, plan.result_step = stride;
  plan.first_row = lowest_row, plan.first_column = lowest_column;
  plan.line_step = plan.phases = 1;
  plan.lines_seen = highest - lowest_row + 1;
  plan.phase_width = ceil_divide(s.width, stride) + highest - lowest_column;
  plan.rows = ceil_divide(s.height, stride);
  for (int64_t a = 0; a < std::min(stride, s.height); ++a)
    for (int64_t b = 0; b < std::min(stride, s.width); ++b) {
      PixelClass part{a, b, ceil_divide(s.height - a, stride), ceil_divide(s.width - b, stride), {}, {}, 0};
      for (int64_t r = 0; r < s.kernel_h; ++r)
        for (int64_t q = 0; q < s.kernel_w; ++q) {
          if ((a + padding - r) % stride != 0 || (b + padding - q) % stride != 0) continue;
          const int64_t line = (a + padding - r) / stride - lowest_row, column = (b + padding - q) / stride - lowest_column;
          part.taps.push_back(r * s.kernel_w + q);
          for (int64_t o = 0; o < s.out; ++o)
            part.offset.push_back(static_cast<int32_t>(line * plan.line_elements() + o * plan.phase_width + column));
        }
      plan.classes.push_back(std::move(part));
    }
  return plan;
}

// Image rows first_row .. first_row + lines of one image, transposed, with zeros outside.
template <class T, class C>
void copy_lines(const Plan& plan, const T* image, int64_t first_row, int64_t lines, C* to) {
  const int64_t elements = plan.line_elements();
  for (int64_t l = 0; l < lines; ++l) {
    C* line = to + l * elements;
    std::fill_n(line, elements, C(0));
    const int64_t row = first_row + l;
    if (row < 0 || row >= plan.height) continue;
    for (int64_t f = 0; f < plan.phases; ++f) {
      const int64_t column0 = plan.first_column + f;  // of the phase's pixel 0
      const int64_t begin = std::max<int64_t>(0, ceil_divide(-column0, plan.phases));
      const int64_t end = std::min(plan.phase_width, ceil_divide(plan.width - column0, plan.phases));
      transpose_line(image + (row * plan.width + column0 + begin * plan.phases) * plan.channels, plan.phases * plan.channels, end - begin,
                     plan.channels, line + f * plan.channels * plan.phase_width + begin, plan.phase_width);
    }
  }
}

// x = max(x, 0); a NaN stays.
template <class C>
void rectify(C* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] < C(0) ? C(0) : x[i];
}

template <class T>
void run(const Plan& plan, const compute_t<T>* panels, const compute_t<T>* bias, ConvActivation activation, const T* from, T* to,
         bool accumulate) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr bool kDirect = std::is_same_v<T, C>;
  int64_t multiply_adds = 0;
  for (const PixelClass& part : plan.classes)
    multiply_adds += part.rows * part.columns * static_cast<int64_t>(part.offset.size()) * plan.result_channels;
  const int64_t threads = thread_count();
  // Few images are cut into blocks of rows.
  const int64_t blocks = std::min(plan.rows, ceil_divide(threads, plan.images));
  const int64_t items = plan.images * blocks;
  const int64_t item_work = std::max<int64_t>(1, multiply_adds / blocks);
  const int64_t pieces = std::clamp<int64_t>(items / std::max<int64_t>(1, kMultiplyAddsPerPiece / item_work), 1, threads);
  const int64_t block_rows = ceil_divide(plan.rows, blocks);
  const int64_t copy_elements = ((block_rows - 1) * plan.line_step + plan.lines_seen) * plan.line_elements() + kLanes<C>;
  const int64_t tile_elements = kDirect ? 0 : kConvRows * kColumns;
  const int64_t scratch_elements = round_up(copy_elements, kLanes<C>) + tile_elements;
  const Tensor scratch = Tensor::empty({pieces, scratch_elements}, dtype_of<C>, Category::workspace, "convolution image");
  C* scratch_data = scratch.data<C>();
  const int64_t result_image = plan.result_height * plan.result_width * plan.result_channels;

  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      C* copy = scratch_data + piece * scratch_elements;
      C* tile = copy + round_up(copy_elements, kLanes<C>);
      for (int64_t item = items * piece / pieces; item < items * (piece + 1) / pieces; ++item) {
        const int64_t image = item / blocks;
        const int64_t row_begin = item % blocks * plan.rows / blocks, row_end = (item % blocks + 1) * plan.rows / blocks;
        copy_lines(plan, from + image * plan.height * plan.width * plan.channels, plan.first_row + row_begin * plan.line_step,
                   (row_end - row_begin - 1) * plan.line_step + plan.lines_seen, copy);
        T* result = to + image * result_image;
        for (const PixelClass& part : plan.classes) {
          const auto k = static_cast<int64_t>(part.offset.size());
          const C* panel = panels + part.panel_begin * kColumns;
          const int64_t tiles = ceil_divide(part.columns, kConvRows);
          for (int64_t o = 0; o < plan.result_channels; o += kColumns, panel += k * kColumns) {
            const int columns = static_cast<int>(std::min(kColumns, plan.result_channels - o));
            const Epilogue<C> epilogue{1, kDirect && accumulate, bias != nullptr ? bias + o : nullptr};
            for (int64_t i = row_begin; i < std::min(row_end, part.rows); ++i) {
              const C* line = copy + (i - row_begin) * plan.line_step * plan.line_elements();
              T* row = result + ((part.row0 + i * plan.result_step) * plan.result_width + part.column0) * plan.result_channels + o;
              const int64_t pixel_step = plan.result_step * plan.result_channels;
              for (int64_t t = 0; t < tiles; ++t) {
                const int64_t j = part.columns * t / tiles;
                const int pixels = static_cast<int>(part.columns * (t + 1) / tiles - j);
                const auto kernel = pixel_kernel_for<C>(pixels, columns);
                if constexpr (kDirect) {
                  kernel(k, line + j, part.offset.data(), panel, row + j * pixel_step, pixel_step, columns, epilogue);
                  if (activation == ConvActivation::relu)
                    for (int p = 0; p < pixels; ++p) rectify(row + (j + p) * pixel_step, columns);
                } else {
                  kernel(k, line + j, part.offset.data(), panel, tile, kColumns, columns, epilogue);
                  if (activation == ConvActivation::relu) rectify(tile, pixels * kColumns);
                  for (int p = 0; p < pixels; ++p) store_run(tile + p * kColumns, row + (j + p) * pixel_step, 1, columns, accumulate);
                }
              }
            }
          }
        }
      }
    }
  });
}

// The sums of one weight gradient: rows are output channels, columns the taps and input channels of a kernel row.
template <class T>
void run_weight_gradient(const ConvSizes& s, const T* grad, const T* x, T* dweight, bool accumulate) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr bool kDirect = std::is_same_v<T, C>;
  const int64_t stride = s.window.stride, padding = s.window.padding;
  const int64_t run_columns = s.kernel_w * s.in;
  const int64_t row_tiles = ceil_divide(s.out, kMicroRows), panels = ceil_divide(run_columns, kColumns);
  const int64_t items = s.kernel_h * panels * row_tiles;
  const int64_t copy_height = (s.out_height - 1) * stride + s.kernel_h, copy_width = (s.out_width - 1) * stride + s.kernel_w;
  const int64_t copied_pixels = std::max<int64_t>(0, std::min(s.width, copy_width - padding));
  const int64_t group = std::min(s.images, std::max<int64_t>(1, kPixelsPerCopy / (s.out_height * s.out_width)));
  const int64_t block_lines = std::max<int64_t>(1, kPixelsPerSum / s.out_width);
  const int64_t c_stride = s.kernel_h * run_columns;

  const int64_t threads = thread_count();
  const int64_t item_work = std::max<int64_t>(1, s.images * s.out_height * s.out_width * s.out * c_stride / items);
  const int64_t pieces = std::clamp<int64_t>(items / std::max<int64_t>(1, kMultiplyAddsPerPiece / item_work), 1, threads);
  const int64_t image_elements = copy_height * copy_width * s.in;
  const int64_t grad_image = s.out_height * s.out_width * s.out;
  const int64_t copy_elements = round_up(group * image_elements + kColumns, kLanes<C>);
  const int64_t grad_elements = kDirect ? 0 : group * grad_image;
  const Tensor scratch = Tensor::empty({pieces, copy_elements + grad_elements}, dtype_of<C>, Category::workspace, "convolution image");
  C* scratch_data = scratch.data<C>();
  // 16-bit results are summed in float and rounded once.
  const Tensor sums = kDirect ? Tensor() : Tensor::empty({s.out, c_stride}, dtype_of<C>, Category::workspace, "convolution weight sums");
  C* c = nullptr;
  if constexpr (kDirect)
    c = dweight;
  else
    c = sums.data<C>();

  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      C* copy = scratch_data + piece * (copy_elements + grad_elements);
      std::fill_n(copy, copy_elements, C(0));
      std::vector<int64_t> line_offset;
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < s.out_height; ++i) line_offset.push_back((g * copy_height + i * stride) * copy_width * s.in);
      const int64_t item_begin = items * piece / pieces, item_end = items * (piece + 1) / pieces;
      // The rows and columns of the result that an item stands for.
      const auto each_item = [&](auto&& body) {
        for (int64_t item = item_begin; item < item_end; ++item) {
          const int64_t tile = item % row_tiles, panel = item / row_tiles % panels, r = item / row_tiles / panels;
          const int64_t row = s.out * tile / row_tiles, rows = s.out * (tile + 1) / row_tiles - row;
          const int64_t column = panel * kColumns;
          body(r, row, rows, column, std::min(kColumns, run_columns - column));
        }
      };
      for (int64_t image = 0; image < s.images; image += group) {
        const int64_t count = std::min(group, s.images - image);
        for (int64_t g = 0; g < count; ++g)
          for (int64_t row = 0; row < std::min(s.height, copy_height - padding); ++row)
            load_run(x + ((image + g) * s.height + row) * s.width * s.in, 1,
                     copy + ((g * copy_height + row + padding) * copy_width + padding) * s.in, copied_pixels * s.in);
        const C* g = nullptr;
        if constexpr (kDirect) {
          g = grad + image * grad_image;
        } else {
          load_run(grad + image * grad_image, 1, copy + copy_elements, count * grad_image);
          g = copy + copy_elements;
        }
        const int64_t lines = count * s.out_height;
        for (int64_t line = 0; line < lines; line += block_lines) {
          const Epilogue<C> epilogue{1, image > 0 || line > 0 || (kDirect && accumulate), nullptr};
          each_item([&](int64_t r, int64_t row, int64_t rows, int64_t column, int64_t columns) {
            const PixelLines<C> pixels{std::min(block_lines, lines - line),
                                       s.out_width,
                                       g + line * s.out_width * s.out + row,
                                       s.out,
                                       copy + r * copy_width * s.in + column,
                                       stride * s.in,
                                       line_offset.data() + line};
            weight_kernel_for<C>(static_cast<int>(rows), static_cast<int>(columns))(pixels, c + row * c_stride + r * run_columns + column,
                                                                                    c_stride, static_cast<int>(columns), epilogue);
          });
        }
      }
      if constexpr (!kDirect)
        each_item([&](int64_t r, int64_t row, int64_t rows, int64_t column, int64_t columns) {
          for (int64_t i = row; i < row + rows; ++i) {
            const int64_t at = i * c_stride + r * run_columns + column;
            store_run(c + at, dweight + at, 1, columns, accumulate);
          }
        });
    }
  });
}

// Elements of the panels of a class: k rows of whole panels.
template <class C>
int64_t panel_rows(int64_t k, int64_t columns) {
  return ceil_divide(columns, kMicroColumns<C>) * k;
}

// The panels of a forward pass: rows are taps and input channels, as they lie in an output channel's weights.
template <class T>
Tensor forward_panels(const ConvSizes& s, const T* weight) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  const int64_t k = s.kernel_h * s.kernel_w * s.in;
  const Tensor packed = Tensor::empty({panel_rows<C>(k, s.out), kColumns}, dtype_of<C>, Category::workspace, "convolution panels");
  C* to = packed.data<C>();
  parallel_for(ceil_divide(s.out, kColumns), std::max<int64_t>(1, (1 << 14) / (k * kColumns)), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack<kColumns>(weight + p * kColumns * k, k, 1, std::min(kColumns, s.out - p * kColumns), k, to + p * k * kColumns);
  });
  return packed;
}

// The panels of a data gradient, class after class: rows are the class's taps and the output channels, columns the input channels.
template <class T>
Tensor data_gradient_panels(const ConvSizes& s, Plan& plan, const T* weight) {
  using C = compute_t<T>;
  constexpr int64_t kColumns = kMicroColumns<C>;
  int64_t rows = 0;
  for (PixelClass& part : plan.classes) {
    part.panel_begin = rows;
    rows += panel_rows<C>(static_cast<int64_t>(part.offset.size()), s.in);
  }
  const Tensor packed = Tensor::empty({rows, kColumns}, dtype_of<C>, Category::workspace, "convolution panels");
  C* to = packed.data<C>();
  parallel_for(static_cast<int64_t>(plan.classes.size()), std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, rows * kColumns)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t p = begin; p < end; ++p) {
                   const PixelClass& part = plan.classes[static_cast<size_t>(p)];
                   C* row = to + part.panel_begin * kColumns;
                   for (int64_t c = 0; c < s.in; c += kColumns) {
                     const int64_t columns = std::min(kColumns, s.in - c);
                     for (const int64_t tap : part.taps)
                       for (int64_t o = 0; o < s.out; ++o, row += kColumns) {
                         load_run(weight + (o * s.kernel_h * s.kernel_w + tap) * s.in + c, 1, row, columns);
                         std::fill(row + columns, row + kColumns, C(0));
                       }
                   }
                 }
               });
  return packed;
}

// Of one pass by its definition: multiplications with the zeros around an image count, and so do those that Winograd's filtering saves.
double product_flops(const ConvSizes& s) {
  return 2.0 * static_cast<double>(s.images * s.out_height * s.out_width * s.out) * static_cast<double>(s.kernel_h * s.kernel_w * s.in);
}

class CpuConvKernels final : public ConvKernels {
 public:
  void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, ConvActivation activation,
               Tensor& y) override {
    const ConvSizes s = conv_sizes(ConvKind::full, x, weight, window, y);
    RZ_CHECK(!bias.defined() || (bias.shape() == Shape{s.out} && bias.is_contiguous() && bias.dtype() == y.dtype()),
             "convolution: a bias of {} does not fit weights of {}", bias.str(), weight.str());
    if (y.numel() == 0) return;
    count_flops(product_flops(s));
    dispatch_floating(y.dtype(), "convolution", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      Tensor wide_bias;
      if (bias.defined()) {
        wide_bias = Tensor::empty({round_up(s.out, kMicroColumns<C>)}, dtype_of<C>, Category::workspace, "convolution bias");
        parallel_for(1, 1, [&](int64_t, int64_t) {
          C* to = wide_bias.data<C>();
          load_run(bias.data<T>(), 1, to, s.out);
          std::fill(to + s.out, to + wide_bias.numel(), C(0));
        });
      }
      const C* const added = bias.defined() ? wide_bias.data<C>() : nullptr;
      if (winograd_pays(s, s.out_height, s.out_width)) {
        winograd_forward<T>(s, x.data<T>(), weight.data<T>(), added, activation, y.data<T>());
        return;
      }
      const Plan plan = forward_plan(s);
      const Tensor panels = forward_panels<T>(s, weight.data<T>());
      run<T>(plan, panels.data<C>(), added, activation, x.data<T>(), y.data<T>(), false);
    });
  }

  void data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate) override {
    const ConvSizes s = conv_sizes(ConvKind::full, dx, weight, window, grad);
    if (dx.numel() == 0) return;
    count_flops(product_flops(s));
    dispatch_floating(dx.dtype(), "convolution", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (winograd_pays(s, s.height, s.width)) {
        winograd_data_gradient<T>(s, grad.data<T>(), weight.data<T>(), dx.data<T>(), accumulate);
        return;
      }
      Plan plan = data_gradient_plan(s);
      const Tensor panels = data_gradient_panels<T>(s, plan, weight.data<T>());
      run<T>(plan, panels.data<compute_t<T>>(), nullptr, ConvActivation::none, grad.data<T>(), dx.data<T>(), accumulate);
    });
  }

  void weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight, bool accumulate) override {
    const ConvSizes s = conv_sizes(ConvKind::full, x, dweight, window, grad);
    if (dweight.numel() == 0) return;
    if (grad.numel() == 0) {
      if (!accumulate) elementwise_kernels().fill(dweight, 0);
      return;
    }
    count_flops(product_flops(s));
    dispatch_floating(grad.dtype(), "convolution", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (winograd_pays(s, s.out_height, s.out_width))
        winograd_weight_gradient<T>(s, grad.data<T>(), x.data<T>(), dweight.data<T>(), accumulate);
      else
        run_weight_gradient<T>(s, grad.data<T>(), x.data<T>(), dweight.data<T>(), accumulate);
    });
  }

  void depthwise_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvWindow& window, Tensor& y) override {
    cpu::depthwise_forward(x, weight, bias, window, y);
  }
  void depthwise_data_gradient(const Tensor& grad, const Tensor& weight, const ConvWindow& window, Tensor& dx, bool accumulate) override {
    cpu::depthwise_data_gradient(grad, weight, window, dx, accumulate);
  }
  void depthwise_weight_gradient(const Tensor& grad, const Tensor& x, const ConvWindow& window, Tensor& dweight, bool accumulate) override {
    cpu::depthwise_weight_gradient(grad, x, window, dweight, accumulate);
  }
};

}  // namespace

ConvKernels& conv_kernels() {
  static CpuConvKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
