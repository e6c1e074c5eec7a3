#include "runtime/kernels/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_micro.h"

namespace rz::cpu {

namespace {

constexpr int64_t kBlockK = 384;
constexpr int64_t kBlockM = 16 * kMicroRows;  // a block of A stays in the L2 cache
constexpr int64_t kBlockN = 2048;             // a block of B is shared by all blocks of A
constexpr size_t kAlign = 64;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Equal blocks of k, as few as possible.
int64_t block_k(int64_t k) {
  const int64_t blocks = (k + kBlockK - 1) / kBlockK;
  return (k + blocks - 1) / blocks;
}

// Loads kLanes<C> contiguous elements.
template <class T, class C>
[[gnu::always_inline]] inline typename Vector<C>::type load_vector(const T* from) {
  if constexpr (std::is_same_v<T, C>) {
    return *reinterpret_cast<const typename Vector<C>::memory*>(from);
  } else {
    alignas(kVectorBytes) C wide[kLanes<C>];
    load_run(from, 1, wide, kLanes<C>);
    return *reinterpret_cast<const typename Vector<C>::type*>(wide);
  }
}

// Transposes a square of vectors in registers: each round interleaves row i with row i + half, log2(lanes) rounds in all.
template <class C>
[[gnu::always_inline]] inline void transpose(typename Vector<C>::type (&rows)[kLanes<C>]) {
  using V = typename Vector<C>::type;
  constexpr int lanes = kLanes<C>;
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  Mask low, high;
  for (int l = 0; l < lanes; ++l) {
    low[l] = static_cast<Index>(l / 2 + (l % 2) * lanes);
    high[l] = static_cast<Index>(lanes / 2 + l / 2 + (l % 2) * lanes);
  }
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    V next[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + lanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + lanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// `Width` rows that are contiguous along p, in squares of vectors. Stores whole vectors in rising order: what runs over a column of
// the panel is overwritten by the next one, what runs over the end of the panel lies in the next panel or in the scratch's slack.
template <int Width, class T, class C>
void pack_transposed(const T* from, int64_t i_stride, int64_t k, C* to) {
  constexpr int lanes = kLanes<C>;
  constexpr int squares = (Width + lanes - 1) / lanes;
  int64_t p = 0;
  for (; p + lanes <= k; p += lanes) {
    typename Vector<C>::type rows[squares][lanes] = {};
#pragma GCC unroll 2
    for (int s = 0; s < squares; ++s) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (s * lanes + i < Width) rows[s][i] = load_vector<T, C>(from + (s * lanes + i) * i_stride + p);
      transpose<C>(rows[s]);
    }
#pragma GCC unroll 16
    for (int q = 0; q < lanes; ++q)
#pragma GCC unroll 2
      for (int s = 0; s < squares; ++s) *reinterpret_cast<typename Vector<C>::memory*>(to + (p + q) * Width + s * lanes) = rows[s][q];
  }
  for (; p < k; ++p)
    for (int i = 0; i < Width; ++i) to[p * Width + i] = static_cast<C>(from[i * i_stride + p]);
}

// One panel with any strides: to[p * Width + i] = from(i, p) for i < width, p < k; zeros for width <= i < Width.
template <int Width, class T, class C>
void pack_strided(const T* from, int64_t i_stride, int64_t p_stride, int64_t width, int64_t k, C* __restrict to) {
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t i = 0; i < width; ++i) to[p * Width + i] = static_cast<C>(from[i * i_stride + p * p_stride]);
    for (int64_t i = width; i < Width; ++i) to[p * Width + i] = C(0);
  }
}

// `Panels` neighbouring panels whose elements are contiguous along i. Reading them side by side uses whole cache lines and few
// pages where one step along p is a large power of two.
template <int Width, int Panels, class T, class C>
void pack_side_by_side(const T* from, int64_t p_stride, int64_t k, C* __restrict to) {
  for (int64_t p = 0; p < k; ++p) {
    const T* __restrict row = from + p * p_stride;
    for (int panel = 0; panel < Panels; ++panel)
      for (int i = 0; i < Width; ++i) to[(panel * k + p) * Width + i] = static_cast<C>(row[panel * Width + i]);
  }
}

// All panels of `count` rows (of A) or columns (of B).
template <int Width, class T, class C>
void pack(const T* from, int64_t i_stride, int64_t p_stride, int64_t count, int64_t k, C* to) {
  constexpr int kTogether = 4;
  for (int64_t i = 0; i < count;) {
    const T* first = from + i * i_stride;
    C* panel = to + i * k;
    const int64_t left = count - i;
    if (i_stride == 1 && left >= kTogether * Width) {
      pack_side_by_side<Width, kTogether>(first, p_stride, k, panel);
      i += kTogether * Width;
      continue;
    }
    if (i_stride == 1 && left >= Width)
      pack_side_by_side<Width, 1>(first, p_stride, k, panel);
    else if (p_stride == 1 && left >= Width)
      pack_transposed<Width>(first, i_stride, k, panel);
    else
      pack_strided<Width>(first, i_stride, p_stride, std::min<int64_t>(Width, left), k, panel);
    i += Width;
  }
}

template <class C, int Vectors, size_t... Row>
constexpr std::array<MicroKernel<C>, sizeof...(Row)> kernel_row(std::index_sequence<Row...>) {
  return {micro_kernel<C, static_cast<int>(Row) + 1, Vectors>...};
}

// The part of the scratch that each purpose takes.
template <class T>
struct Layout {
  using C = compute_t<T>;
  size_t a_bytes, b_bytes, bias_bytes, c_bytes;
  Layout(int64_t m, int64_t n, int64_t k) {
    const int64_t depth = std::min(k, block_k(k));
    a_bytes = aligned(static_cast<size_t>(round_up(std::min(m, kBlockM), kMicroRows) * depth) * sizeof(C) + kVectorBytes);
    b_bytes = aligned(static_cast<size_t>(round_up(std::min(n, kBlockN), kMicroColumns<C>) * depth) * sizeof(C) + kVectorBytes);
    bias_bytes = aligned(static_cast<size_t>(round_up(std::min(n, kBlockN), kMicroColumns<C>)) * sizeof(C));
    // 16-bit results are summed in float and rounded once.
    c_bytes = std::is_same_v<T, C> ? 0 : aligned(static_cast<size_t>(m * std::min(n, kBlockN)) * sizeof(C));
  }
  size_t total() const { return a_bytes + b_bytes + bias_bytes + c_bytes; }
};

}  // namespace

template <class C>
MicroKernel<C> kernel_for(int rows, int columns) {
  static constexpr auto kNarrow = kernel_row<C, 1>(std::make_index_sequence<kMicroRows>());
  static constexpr auto kWide = kernel_row<C, 2>(std::make_index_sequence<kMicroRows>());
  const auto row = static_cast<size_t>(rows - 1);
  return columns <= kLanes<C> ? kNarrow[row] : kWide[row];
}

template <class T>
size_t gemm_scratch_bytes(int64_t m, int64_t n, int64_t k) {
  return Layout<T>(m, n, k).total();
}

template <class T>
void gemm(const Gemm<T>& g, std::byte* scratch) {
  using C = compute_t<T>;
  constexpr bool kDirect = std::is_same_v<T, C>;
  constexpr int64_t kRows = kMicroRows;
  constexpr int64_t kColumns = kMicroColumns<C>;
  if (g.m == 0 || g.n == 0) return;
  const Layout<T> layout(g.m, g.n, g.k);
  C* packed_a = reinterpret_cast<C*>(scratch);
  C* packed_b = reinterpret_cast<C*>(scratch + layout.a_bytes);
  C* bias = reinterpret_cast<C*>(scratch + layout.a_bytes + layout.b_bytes);
  C* sums = reinterpret_cast<C*>(scratch + layout.a_bytes + layout.b_bytes + layout.bias_bytes);
  const int64_t depth = block_k(g.k);

  for (int64_t jc = 0; jc < g.n; jc += kBlockN) {
    const int64_t nc = std::min(kBlockN, g.n - jc);
    const bool with_bias = g.bias != nullptr && !g.accumulate;
    if (with_bias) {
      load_run(g.bias + jc, 1, bias, nc);
      std::fill(bias + nc, bias + round_up(nc, kColumns), C(0));
    }
    C* c = nullptr;
    int64_t c_stride = 0;
    if constexpr (kDirect)
      c = g.c + jc, c_stride = g.c_row_stride;
    else
      c = sums, c_stride = nc;
    for (int64_t pc = 0; pc < g.k; pc += depth) {
      const int64_t kc = std::min(depth, g.k - pc);
      pack<kColumns>(g.b.data + jc * g.b.column_stride + pc * g.b.row_stride, g.b.column_stride, g.b.row_stride, nc, kc, packed_b);
      const bool add = pc > 0 || (kDirect && g.accumulate);
      for (int64_t ic = 0; ic < g.m; ic += kBlockM) {
        const int64_t mc = std::min(kBlockM, g.m - ic);
        pack<kRows>(g.a.data + ic * g.a.row_stride + pc * g.a.column_stride, g.a.row_stride, g.a.column_stride, mc, kc, packed_a);
        for (int64_t jr = 0; jr < nc; jr += kColumns) {
          const int columns = static_cast<int>(std::min(kColumns, nc - jr));
          const Epilogue<C> epilogue{g.alpha, add, with_bias && !add ? bias + jr : nullptr};
          for (int64_t ir = 0; ir < mc; ir += kRows) {
            const int rows = static_cast<int>(std::min(kRows, mc - ir));
            kernel_for<C>(rows, columns)(kc, packed_a + ir * kc, packed_b + jr * kc, c + (ic + ir) * c_stride + jr, c_stride, columns,
                                         epilogue);
          }
        }
      }
    }
    if constexpr (!kDirect)
      for (int64_t i = 0; i < g.m; ++i) store_run(sums + i * nc, g.c + i * g.c_row_stride + jc, 1, nc, g.accumulate);
  }
}

#define RZ_INSTANTIATE(T)                                           \
  template size_t gemm_scratch_bytes<T>(int64_t, int64_t, int64_t); \
  template void gemm<T>(const Gemm<T>&, std::byte*);
RZ_INSTANTIATE(float)
RZ_INSTANTIATE(double)
RZ_INSTANTIATE(bf16)
RZ_INSTANTIATE(f16)
#undef RZ_INSTANTIATE

}  // namespace rz::cpu
