// The matmul family: broadcasts batches, merges them into rows where one product does for all, and cuts the work for threads.
#include "runtime/kernels/matmul.h"

#include <algorithm>

#include "runtime/core/op_profile.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/gemm.h"
#include "runtime/kernels/cpu/gemm_micro.h"
#include "runtime/kernels/cpu/gemm_tiles.h"
#include "runtime/kernels/cpu/strided.h"

namespace rz::cpu {

namespace {

constexpr int64_t kMultiplyAddsPerPiece = 1 << 18;  // below this a thread is not worth waking

// The last two dimensions of a tensor as a (possibly transposed) matrix, and the tensor of its leading dimensions.
struct Side {
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
  Tensor batch;  // one element per matrix: the first
};

Side side(const Tensor& t, bool transpose, const char* which) {
  RZ_CHECK(t.rank() >= 2, "matmul: {} needs two dimensions or more, got {}", which, t.str());
  Side s{t.size(-2), t.size(-1), t.stride(-2), t.stride(-1), t};
  if (transpose) {
    std::swap(s.rows, s.columns);
    std::swap(s.row_stride, s.column_stride);
  }
  return s;
}

Shape leading(const Tensor& t) { return Shape(t.shape().extents().first(static_cast<size_t>(t.rank() - 2))); }

// Offset of matrix `index` of a batch of shape `batch`, for a tensor whose leading dimensions broadcast to it.
int64_t batch_offset(const Tensor& t, const Shape& batch, int64_t index) {
  int64_t offset = 0;
  for (int d = 1; d <= batch.rank(); ++d) {
    const int64_t i = index % batch[-d];
    index /= batch[-d];
    if (d <= t.rank() - 2 && t.size(-2 - d) != 1) offset += i * t.stride(-2 - d);
  }
  return offset;
}

// Whether the leading dimensions of `t` continue its rows: matrix i + 1 begins where matrix i's rows end.
bool rows_continue(const Tensor& t, int64_t rows, int64_t row_stride) {
  int64_t expected = rows * row_stride;
  for (int d = t.rank() - 3; d >= 0; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// One of the two ways of a product.
template <class T>
struct Way {
  bool tiles;
  int64_t rows, columns;  // at whose multiples a product is cut for threads
  explicit Way(const Gemm<T>& g)
      : tiles(tiles_pay(g) && tiles_in_use()),
        rows(tiles ? kTilePanel : kMicroRows),
        columns(tiles ? kTilePanel : kMicroColumns<compute_t<T>>) {}

  size_t scratch_bytes(int64_t m, int64_t n, int64_t k) const {
    if constexpr (!std::is_same_v<T, double>)
      if (tiles) return gemm_tiles_scratch_bytes<T>(m, n, k);
    return gemm_scratch_bytes<T>(m, n, k);
  }
  void multiply(const Gemm<T>& g, std::byte* scratch) const {
    if constexpr (!std::is_same_v<T, double>)
      if (tiles) return gemm_tiles(g, scratch);
    gemm(g, scratch);
  }
};

template <class T>
void run(Gemm<T> g, const Tensor& a, const Tensor& b, Tensor& out, const Shape& batch, int64_t matrices) {
  const int64_t threads = thread_count();
  const Way<T> way(g);
  const int64_t work = std::max<int64_t>(1, g.m * g.n * std::max<int64_t>(g.k, 1));
  const T* a_data = a.numel() == 0 ? nullptr : a.data<T>();
  const T* b_data = b.numel() == 0 ? nullptr : b.data<T>();
  T* out_data = out.data<T>();
  const auto product = [&](int64_t index, Gemm<T> piece, int64_t row, int64_t column, std::byte* scratch) {
    piece.a.data = a_data + batch_offset(a, batch, index) + row * g.a.row_stride;
    piece.b.data = b_data + batch_offset(b, batch, index) + column * g.b.column_stride;
    piece.c = out_data + batch_offset(out, batch, index) + row * g.c_row_stride + column;
    if (piece.bias != nullptr) piece.bias += column;
    way.multiply(piece, scratch);
  };

  // Either whole matrices go to threads, or every matrix is cut along its longer side at multiples of a tile.
  const bool by_matrix = threads == 1 || matrices >= 2 * threads;
  const bool by_row = g.m >= g.n;
  const int64_t tile = by_row ? way.rows : way.columns;
  const int64_t items = by_matrix ? matrices : ((by_row ? g.m : g.n) + tile - 1) / tile;
  const int64_t item_work = by_matrix ? work : std::max<int64_t>(1, work / items);
  const int64_t grain = std::max<int64_t>(1, kMultiplyAddsPerPiece / item_work);
  const int64_t pieces = std::clamp<int64_t>(items / grain, 1, threads);
  const int64_t most_items = (items + pieces - 1) / pieces;
  const int64_t scratch_m = by_matrix || !by_row ? g.m : std::min(g.m, most_items * tile);
  const int64_t scratch_n = by_matrix || by_row ? g.n : std::min(g.n, most_items * tile);
  const auto scratch_bytes = static_cast<int64_t>(way.scratch_bytes(scratch_m, scratch_n, g.k));
  const Tensor scratch = Tensor::empty({pieces, scratch_bytes}, DType::u8, Category::workspace, "matmul panels");
  std::byte* scratch_data = scratch.raw_data();

  // pieces <= threads, so each index below is one piece on one thread.
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      std::byte* own = scratch_data + p * scratch_bytes;
      const int64_t begin = items * p / pieces;
      const int64_t end = items * (p + 1) / pieces;
      if (by_matrix) {
        for (int64_t i = begin; i < end; ++i) product(i, g, 0, 0, own);
        continue;
      }
      Gemm<T> piece = g;
      const int64_t from = begin * tile;
      (by_row ? piece.m : piece.n) = std::min(end * tile, by_row ? g.m : g.n) - from;
      for (int64_t i = 0; i < matrices; ++i) product(i, piece, by_row ? from : 0, by_row ? 0 : from, own);
    }
  });
}

class CpuMatmulKernels final : public MatmulKernels {
 public:
  void matmul(const Tensor& a, const Tensor& b, Tensor& out, const MatmulOptions& options) override {
    const Side left = side(a, options.transpose_a, "a");
    const Side right = side(b, options.transpose_b, "b");
    RZ_CHECK(left.columns == right.rows, "matmul: {}{} and {}{} do not fit: {} columns against {} rows", a.str(),
             options.transpose_a ? " transposed" : "", b.str(), options.transpose_b ? " transposed" : "", left.columns, right.rows);
    RZ_CHECK(a.dtype() == b.dtype() && a.dtype() == out.dtype(), "matmul needs one element type, got {}, {} and {}", a.str(), b.str(),
             out.str());
    const Shape batch = broadcast_shapes(leading(a), leading(b), "matmul");
    RZ_CHECK(out.rank() == batch.rank() + 2 && leading(out) == batch && out.size(-2) == left.rows && out.size(-1) == right.columns,
             "matmul: {} x {} does not fit an output of {}", a.str(), b.str(), out.str());
    RZ_CHECK(out.size(-1) == 1 || out.stride(-1) == 1, "matmul: the rows of the output {} must be contiguous", out.str());
    RZ_CHECK(!options.bias.defined() || (options.bias.shape() == Shape{right.columns} && options.bias.is_contiguous() &&
                                         options.bias.dtype() == out.dtype() && !options.accumulate),
             "matmul: a bias of {} does not fit {} columns", options.bias.str(), right.columns);
    if (out.numel() == 0) return;
    if (left.columns == 0) return empty_sum(out, options);
    count_flops(2.0 * static_cast<double>(out.numel()) * static_cast<double>(left.columns));
    dispatch_floating(out.dtype(), "matmul", [&](auto tag) {
      using T = typename decltype(tag)::type;
      Gemm<T> g;
      g.m = left.rows;
      g.n = right.columns;
      g.k = left.columns;
      g.a = {nullptr, left.row_stride, left.column_stride};
      g.b = {nullptr, right.row_stride, right.column_stride};
      g.c_row_stride = out.stride(-2);
      g.alpha = static_cast<compute_t<T>>(options.alpha);
      g.accumulate = options.accumulate;
      g.bias = options.bias.defined() ? options.bias.template data<T>() : nullptr;
      int64_t matrices = batch.numel();
      // One b for all: the batch's rows are the rows of one product.
      if (matrices > 1 && leading(b).numel() == 1 && leading(a) == batch && rows_continue(a, g.m, left.row_stride) &&
          rows_continue(out, g.m, g.c_row_stride)) {
        g.m *= matrices;
        matrices = 1;
      }
      run<T>(g, a, b, out, batch, matrices);
    });
  }

 private:
  // A sum over no terms: zeros, or the bias.
  static void empty_sum(Tensor& out, const MatmulOptions& options) {
    if (options.accumulate) return;
    auto& kernels = elementwise_kernels();
    if (options.bias.defined())
      kernels.copy(options.bias.view_broadcast(out.shape()), out);
    else
      kernels.fill(out, 0);
  }
};

}  // namespace

MatmulKernels& matmul_kernels() {
  static CpuMatmulKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
