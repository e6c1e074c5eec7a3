#include "runtime/kernels/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/gemm_micro.h"
#include "runtime/kernels/cpu/gemm_pack.h"

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
