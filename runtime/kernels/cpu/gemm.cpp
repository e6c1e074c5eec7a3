#include "runtime/kernels/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/kernels/cpu/gemm_micro.h"
#include "runtime/kernels/cpu/gemm_pack.h"
#include "runtime/kernels/cpu/gemm_strip.h"
#include "runtime/kernels/cpu/rounding.h"

namespace rz::cpu {

namespace {

// A panel of A stays in the L1 cache while all panels of a block of B, which stays in the L2 cache beside a block of A, pass by it; or,
// where right_panel_stays, a panel of B while those of a block of A do. C is finished in strips of kStripN columns, so that what one block
// of k leaves is still near when the next adds to it; B is packed once for each, unless one block of A is all of it: then block by block,
// while it is near.
constexpr int64_t kBlockK = 384;
constexpr int64_t kBlockM = 480;
constexpr int64_t kBlockN = 512;
constexpr int64_t kStripN = 2048;
constexpr size_t kAlign = 64;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// The length of equal blocks, as few as possible, of at most `most`; a multiple of `unit`, which divides `most`.
int64_t block_length(int64_t length, int64_t most, int64_t unit) {
  const int64_t blocks = (length + most - 1) / most;
  return round_up((length + blocks - 1) / blocks, unit);
}
int64_t block_k(int64_t k) { return block_length(k, kBlockK, 1); }
int64_t block_m(int64_t m) { return block_length(m, kBlockM, kMicroRows); }

// Whether panels of a packed A pass by one of B instead. Where B's panel is the wider one and leaves room for A's in an L1 cache of 32 KiB,
// less is read per step. It pays for packing A where B has many panels, and where A has several blocks, for which B is packed as a whole.
template <class C>
bool right_panel_stays(int64_t m, int64_t n) {
  constexpr int64_t kColumns = kMicroColumns<C>;
  constexpr bool kFits = kColumns > kMicroRows && kColumns * kBlockK * static_cast<int64_t>(sizeof(C)) <= 24 << 10;
  return kFits && m > kBlockM && n >= 256;
}

template <class C>
int64_t block_n(int64_t n) {
  return block_length(std::min(n, kStripN), kBlockN, kMicroColumns<C>);
}

// The columns of B that are packed together, of a strip of `n`, for all `m` rows.
template <class C>
int64_t packed_columns(int64_t m, int64_t n) {
  return block_m(m) >= m ? block_n<C>(n) : round_up(std::min(n, kStripN), kMicroColumns<C>);
}

// Rows of A that lie a multiple of this apart share few places of the L1 cache: they are packed.
constexpr int64_t kAliasBytes = 4096;

// Whether the rows of A can be read where they lie.
template <class T>
bool reads_in_place(const MatrixView<T>& a) {
  return std::is_same_v<T, compute_t<T>> && a.column_stride == 1 && a.row_stride * static_cast<int64_t>(sizeof(T)) % kAliasBytes != 0;
}

template <class C, int Vectors, bool kInPlace, size_t... Row>
constexpr std::array<MicroKernel<C>, sizeof...(Row)> kernel_row(std::index_sequence<Row...>) {
  return {micro_kernel<C, static_cast<int>(Row) + 1, Vectors, kInPlace>...};
}

// The part of the scratch that each purpose takes. None shrinks when m or n grows: what is enough for a product is enough for every part of
// it, however that is blocked.
template <class T>
struct Layout {
  using C = compute_t<T>;
  size_t a_bytes, b_bytes, bias_bytes, c_bytes;
  Layout(int64_t m, int64_t n, int64_t k) {
    const int64_t depth = block_k(k);
    const int64_t rows = std::min(round_up(m, kMicroRows), kBlockM);
    const int64_t columns = std::min(round_up(n, kMicroColumns<C>), m <= kBlockM ? kBlockN : kStripN);
    a_bytes = aligned(static_cast<size_t>(rows * depth) * sizeof(C) + kVectorBytes);
    b_bytes = aligned(static_cast<size_t>(columns * depth) * sizeof(C) + kVectorBytes);
    bias_bytes = aligned(static_cast<size_t>(round_up(std::min(n, kStripN), kMicroColumns<C>)) * sizeof(C));
    // 16-bit results are summed in float and rounded once.
    c_bytes = std::is_same_v<T, C> ? 0 : aligned(static_cast<size_t>(m * std::min(n, kStripN)) * sizeof(C));
  }
  size_t total() const { return a_bytes + b_bytes + bias_bytes + c_bytes; }
};

}  // namespace

template <class C>
MicroKernel<C> kernel_for(int rows, int columns, bool in_place) {
  constexpr auto kRows = std::make_index_sequence<kMicroRows>();
  static constexpr std::array<std::array<MicroKernel<C>, kMicroRows>, 4> kKernels = {
      kernel_row<C, 1, false>(kRows), kernel_row<C, 2, false>(kRows), kernel_row<C, 1, true>(kRows), kernel_row<C, 2, true>(kRows)};
  return kKernels[(in_place ? 2 : 0) + (columns > kLanes<C> ? 1 : 0)][static_cast<size_t>(rows - 1)];
}

template <class T>
size_t gemm_scratch_bytes(int64_t m, int64_t n, int64_t k) {
  return Layout<T>(m, n, k).total();
}

template <class T>
void gemm(const Gemm<T>& g, std::byte* scratch) {
  using C = compute_t<T>;
  constexpr int64_t kRows = kMicroRows;
  constexpr int64_t kColumns = kMicroColumns<C>;
  if (g.m == 0 || g.n == 0) return;
  const Layout<T> layout(g.m, g.n, g.k);
  C* packed_a = reinterpret_cast<C*>(scratch);
  C* packed_b = reinterpret_cast<C*>(scratch + layout.a_bytes);
  C* bias = reinterpret_cast<C*>(scratch + layout.a_bytes + layout.b_bytes);
  C* sums = reinterpret_cast<C*>(scratch + layout.a_bytes + layout.b_bytes + layout.bias_bytes);
  const int64_t depth = block_k(g.k);
  const bool right_stays = right_panel_stays<C>(g.m, g.n);
  const int64_t high = right_stays ? block_length(g.m, kBlockM / 2, kRows) : block_m(g.m);
  const int64_t wide = block_n<C>(g.n);
  const int64_t packed_n = packed_columns<C>(g.m, g.n);
  const bool in_place = !right_stays && reads_in_place(g.a);

  for (int64_t js = 0; js < g.n; js += kStripN) {
    const int64_t ns = std::min(kStripN, g.n - js);
    const GemmStrip<T> strip(g, js, ns, kColumns, bias, sums);
    for (int64_t pc = 0; pc < g.k; pc += depth) {
      const int64_t kc = std::min(depth, g.k - pc);
      for (int64_t jp = 0; jp < ns; jp += packed_n) {
        const int64_t np = std::min(packed_n, ns - jp);
        pack<kColumns>(g.b.data + (js + jp) * g.b.column_stride + pc * g.b.row_stride, g.b.column_stride, g.b.row_stride, np, kc, packed_b);
        for (int64_t ic = 0; ic < g.m; ic += high) {
          const int64_t mc = std::min(high, g.m - ic);
          const T* a = g.a.data + ic * g.a.row_stride + pc * g.a.column_stride;
          if (!in_place && (jp == 0 || mc < g.m)) pack<kRows>(a, g.a.row_stride, g.a.column_stride, mc, kc, packed_a);
          for (int64_t jc = 0; jc < np; jc += wide) {
            const int64_t end = jp + jc + std::min(wide, np - jc);
            const auto tile = [&](int64_t ir, int64_t jr) {
              const int rows = static_cast<int>(std::min(kRows, mc - ir));
              const int columns = static_cast<int>(std::min(kColumns, end - jr));
              const C* panel = packed_a + ir * kc;
              if constexpr (std::is_same_v<T, C>) panel = in_place ? a + ir * g.a.row_stride : panel;
              const Epilogue<C> epilogue{g.alpha, strip.adds(pc), strip.bias(jr, pc)};
              kernel_for<C>(rows, columns, in_place)(kc, panel, g.a.row_stride, packed_b + (jr - jp) * kc, strip.at(ic + ir, jr),
                                                     strip.stride(), columns, epilogue);
            };
            if (right_stays) {
              for (int64_t jr = jp + jc; jr < end; jr += kColumns)
                for (int64_t ir = 0; ir < mc; ir += kRows) tile(ir, jr);
            } else {
              for (int64_t ir = 0; ir < mc; ir += kRows)
                for (int64_t jr = jp + jc; jr < end; jr += kColumns) tile(ir, jr);
            }
          }
        }
      }
    }
    strip.finish();
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
