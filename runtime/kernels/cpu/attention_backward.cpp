// FlashAttention backward (algorithm 4 of Dao et al. 2022): with L = m + log l from the forward pass and delta = rowsum(dO * O),
//   P = exp(S - L)     dV += P^T dO     dP = dO V^T     dS = P * (dP - delta)     dQ += dS K     dK += dS^T Q
// for one tile of queries against one tile of keys at a time, P recomputed.
//
// A unit of work is one (batch, key/value head): its thread alone adds to that head's dK and dV, over query heads and query tiles in
// order, and makes their dQ on the way. The sums do not depend on the number of threads.
#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/attention_passes.h"

namespace rz::cpu {

namespace {

template <class T>
struct BackwardTensors {
  Rows<const T> grad, q, k, v, out;
  Rows<T> dq, dk, dv;
  const compute_t<T>* lse = nullptr;
  bool wants_q = false, wants_k = false, wants_v = false;
  bool accumulate = false;
};

template <class T>
class BackwardWorker {
 public:
  using C = compute_t<T>;

  BackwardWorker(const AttentionCall& call, const AttentionSizes& sizes, std::byte* workspace)
      : call_(call),
        s_(sizes),
        padded_(round_up(sizes.width, kLanes<C>)),
        key_count_(round_up(sizes.keys, kPanel<C>)),
        rotation_(call, sizes.width) {
    Arena arena(workspace);
    for (C** part : {&key_rows_, &key_panels_, &value_panels_, &dk_, &dv_}) *part = arena.take<C>(key_count_ * padded_);
    for (C** part : {&queries_, &grads_, &dq_}) *part = arena.take<C>(kQueryTile * padded_);
    for (C** part : {&p_, &ds_}) *part = arena.take<C>(kQueryTile * kKeyTile);
    delta_ = arena.take<C>(kQueryTile);
    used_bytes_ = arena.used_bytes();
  }
  int64_t used_bytes() const { return used_bytes_; }

  void run(int64_t batch, int64_t kv_head, const BackwardTensors<T>& t) {
    // dv_ lends its memory to the value rows while they are transposed.
    read_padded(t.v, batch, kv_head, Rotation<C>{}, dv_);
    transpose_into_panels(dv_, key_count_, padded_, value_panels_);
    read_padded(t.k, batch, kv_head, rotation_, key_rows_);
    transpose_into_panels(key_rows_, key_count_, padded_, key_panels_);
    std::fill_n(dk_, key_count_ * padded_, C(0));
    std::fill_n(dv_, key_count_ * padded_, C(0));
    for (int64_t g = 0; g < s_.group(); ++g)
      for (int64_t first = 0; first < s_.queries; first += kQueryTile)
        query_tile(batch, kv_head * s_.group() + g, first, std::min(kQueryTile, s_.queries - first), t);
    if (t.wants_k) write_rows(dk_, padded_, t.dk, batch, kv_head, 0, s_.keys, s_.width, C(1), rotation_, t.accumulate);
    if (t.wants_v) write_rows(dv_, padded_, t.dv, batch, kv_head, 0, s_.keys, s_.width, C(1), Rotation<C>{}, t.accumulate);
  }

 private:
  void read_padded(const Rows<const T>& from, int64_t batch, int64_t kv_head, const Rotation<C>& rotation, C* to) {
    read_rows(from, batch, kv_head, 0, s_.keys, s_.width, padded_, C(1), rotation, to);
    std::fill(to + s_.keys * padded_, to + key_count_ * padded_, C(0));
  }

  void query_tile(int64_t batch, int64_t head, int64_t first, int64_t rows, const BackwardTensors<T>& t) {
    const C scale = static_cast<C>(call_.scale);
    // The queries carry the scale: dK = dS^T (scale Q) needs no more, dQ is multiplied by it when it is written.
    read_rows(t.q, batch, head, first, rows, s_.width, padded_, scale, rotation_, queries_);
    read_rows(t.grad, batch, head, first, rows, s_.width, padded_, C(1), Rotation<C>{}, grads_);
    const C* lse = t.lse + (batch * s_.heads + head) * s_.queries + first;
    for (int64_t r = 0; r < rows; ++r)
      delta_[r] = sum_lanes(t.out.at(batch, head, first + r), grads_ + r * padded_, s_.width, [](auto a, auto b) { return a * b; });
    std::fill_n(dq_, rows * padded_, C(0));
    const int64_t last_key = visible_keys(s_, call_.causal, first + rows - 1);
    for (int64_t key = 0; key < last_key; key += kKeyTile) key_tile(first, rows, key, std::min(kKeyTile, last_key - key), lse, t);
    if (t.wants_q) write_rows(dq_, padded_, t.dq, batch, head, first, rows, s_.width, scale, rotation_, t.accumulate);
  }

  void key_tile(int64_t first, int64_t rows, int64_t key, int64_t keys, const C* lse, const BackwardTensors<T>& t) {
    const auto seen = [&](int64_t row) { return std::clamp<int64_t>(visible_keys(s_, call_.causal, first + row) - key, 0, kKeyTile); };
    // The first row that sees key j of the tile.
    const auto first_row = [&](int64_t j) {
      return call_.causal ? std::clamp<int64_t>(key + j - (s_.keys - s_.queries) - first, 0, rows) : int64_t{0};
    };
    const auto row_block = [&](int64_t m, int64_t count) { return TileRange{0, s_.width, seen(m + count - 1)}; };
    const int64_t panel = kPanel<C> * padded_;
    tile_product<false>(rows, s_.width, queries_, padded_, TileMatrix<C>{key_panels_ + key * padded_, kPanel<C>, panel}, p_, kKeyTile,
                        false, row_block);
    tile_product<false>(rows, s_.width, grads_, padded_, TileMatrix<C>{value_panels_ + key * padded_, kPanel<C>, panel}, ds_, kKeyTile,
                        false, row_block);
    for (int64_t r = 0; r < rows; ++r) differentiate(r, seen(r), lse[r]);
    const auto key_block = [&](int64_t j, int64_t) { return TileRange{first_row(j), rows, padded_}; };
    if (t.wants_v)
      tile_product<true>(keys, rows, p_, kKeyTile, TileMatrix<C>{grads_, padded_, kPanel<C>}, dv_ + key * padded_, padded_, true,
                         key_block);
    if (t.wants_k)
      tile_product<true>(keys, rows, ds_, kKeyTile, TileMatrix<C>{queries_, padded_, kPanel<C>}, dk_ + key * padded_, padded_, true,
                         key_block);
    if (t.wants_q)
      tile_product<false>(rows, kKeyTile, ds_, kKeyTile, TileMatrix<C>{key_rows_ + key * padded_, padded_, kPanel<C>}, dq_, padded_, true,
                          [&](int64_t m, int64_t count) {
                            return TileRange{0, seen(m + count - 1), padded_};
                          });
  }

  // Row r of P and dS from scores and dP; 0 beyond the keys it sees, as far as a product may read.
  void differentiate(int64_t r, int64_t count, C lse) {
    C* p = p_ + r * kKeyTile;
    C* ds = ds_ + r * kKeyTile;
    const C delta = delta_[r];
    // A row that sees nothing, or nothing but -inf, weighs everything 0.
    const C origin = count == 0 || lse == -std::numeric_limits<C>::infinity() ? C(0) : lse;
    const int64_t stop = std::min(kKeyTile, round_up(count + kBlockRows, kLanes<C>));
    fill_tail(p, count, stop, -std::numeric_limits<C>::infinity());
    fill_tail(ds, count, stop, C(0));
    for (int64_t i = 0; i < stop; i += kLanes<C>) {
      const Lanes<C> weight = map_lanes<C>(load_lanes(p + i), [origin](C x) { return exp_flushed(x - origin); });
      store_lanes<C>(p + i, weight);
      store_lanes<C>(ds + i, weight * (load_lanes(ds + i) - delta));
    }
  }

  const AttentionCall& call_;
  const AttentionSizes& s_;
  int64_t padded_;
  int64_t key_count_;
  Rotation<C> rotation_;
  int64_t used_bytes_ = 0;
  C *key_rows_, *key_panels_, *value_panels_, *dk_, *dv_, *queries_, *grads_, *dq_, *p_, *ds_, *delta_;
};

}  // namespace

template <class T>
void attention_backward(const AttentionCall& call, const AttentionSizes& sizes, const Tensor& grad, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv, bool accumulate) {
  const int64_t units = sizes.batch * sizes.kv_heads;
  if (units == 0) return;
  const int64_t pieces = std::min<int64_t>(thread_count(), units);
  const int64_t piece_bytes = BackwardWorker<T>(call, sizes, nullptr).used_bytes();
  const Tensor workspace = Tensor::empty({pieces, piece_bytes}, DType::u8, Category::workspace, "attention workspace");
  std::byte* base = workspace.raw_data();
  BackwardTensors<T> t{Rows<const T>(grad),      Rows<const T>(q), Rows<const T>(k), Rows<const T>(v), Rows<const T>(out), {}, {}, {},
                       lse.data<compute_t<T>>(), dq.defined(),     dk.defined(),     dv.defined(),     accumulate};
  if (t.wants_q) t.dq = Rows<T>(dq);
  if (t.wants_k) t.dk = Rows<T>(dk);
  if (t.wants_v) t.dv = Rows<T>(dv);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      BackwardWorker<T> worker(call, sizes, base + p * piece_bytes);
      for (int64_t unit = units * p / pieces; unit < units * (p + 1) / pieces; ++unit)
        worker.run(unit / sizes.kv_heads, unit % sizes.kv_heads, t);
    }
  });
}

#define RZ_ATTENTION_BACKWARD(T)                                                                                                \
  template void attention_backward<T>(const AttentionCall&, const AttentionSizes&, const Tensor&, const Tensor&, const Tensor&, \
                                      const Tensor&, const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&, bool)
RZ_ATTENTION_BACKWARD(float);
RZ_ATTENTION_BACKWARD(double);
RZ_ATTENTION_BACKWARD(bf16);
RZ_ATTENTION_BACKWARD(f16);
#undef RZ_ATTENTION_BACKWARD

}  // namespace rz::cpu
