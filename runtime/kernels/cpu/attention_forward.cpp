// FlashAttention forward (algorithm 1 of Dao et al. 2022, in the order of FlashAttention-2: queries outside, keys inside).
//
// A unit of work is a tile of queries of one head. Its thread holds the keys (transposed, in panels) and values of that head in the
// compute type, packed once and used by all tiles of all query heads that share them; per tile it keeps for each row the running
// maximum m, the running sum l (in lanes) and the unnormalized output O:
//   m' = max(m, max S)     a = exp(m - m')     l = a l + sum exp(S - m')     O = a O + exp(S - m') V
// Units are cut into one contiguous range per thread, and every unit is computed by itself: bits do not depend on threads.
#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/attention_passes.h"

namespace rz::cpu {

namespace {

template <class T>
class ForwardWorker {
 public:
  using C = compute_t<T>;

  ForwardWorker(const AttentionCall& call, const AttentionSizes& sizes, std::byte* workspace)
      : call_(call), s_(sizes), padded_(round_up(sizes.width, kLanes<C>)), rotation_(call, sizes.width) {
    Arena arena(workspace);
    const int64_t key_rows = round_up(s_.keys, kPanel<C>);
    keys_ = arena.take<C>(key_rows * padded_);
    values_ = arena.take<C>(s_.keys * padded_);
    key_rows_ = arena.take<C>(kPanel<C> * padded_);
    queries_ = arena.take<C>(kQueryTile * padded_);
    scores_ = arena.take<C>(kQueryTile * kKeyTile);
    output_ = arena.take<C>(kQueryTile * padded_);
    max_ = arena.take<C>(kQueryTile);
    sum_ = arena.take<C>(kQueryTile * kLanes<C>);
    used_bytes_ = arena.used_bytes();
  }
  int64_t used_bytes() const { return used_bytes_; }

  void run(int64_t first_unit, int64_t last_unit, const Rows<const T>& q, const Rows<const T>& k, const Rows<const T>& v,
           const Rows<T>& out, C* lse) {
    const int64_t tiles = s_.query_tiles();
    const int64_t per_kv_head = s_.group() * tiles;
    int64_t packed = -1;
    for (int64_t unit = first_unit; unit < last_unit; ++unit) {
      const int64_t pair = unit / per_kv_head;
      const int64_t batch = pair / s_.kv_heads;
      const int64_t kv_head = pair % s_.kv_heads;
      if (pair != packed) pack(batch, kv_head, k, v);
      packed = pair;
      const int64_t head = kv_head * s_.group() + unit % per_kv_head / tiles;
      // Long and short causal rows alternate, so that contiguous ranges of units cost about the same.
      const int64_t step = unit % tiles;
      const int64_t tile = step % 2 == 0 ? step / 2 : tiles - 1 - step / 2;
      attend(batch, head, tile * kQueryTile, std::min(kQueryTile, s_.queries - tile * kQueryTile), q, out, lse);
    }
  }

 private:
  void pack(int64_t batch, int64_t kv_head, const Rows<const T>& k, const Rows<const T>& v) {
    for (int64_t first = 0; first < s_.keys; first += kPanel<C>) {
      const int64_t count = std::min(kPanel<C>, s_.keys - first);
      read_rows(k, batch, kv_head, first, count, s_.width, padded_, C(1), rotation_, key_rows_);
      std::fill(key_rows_ + count * padded_, key_rows_ + kPanel<C> * padded_, C(0));
      transpose_into_panels(key_rows_, kPanel<C>, padded_, keys_ + first * padded_);
    }
    read_rows(v, batch, kv_head, 0, s_.keys, s_.width, padded_, C(1), Rotation<C>{}, values_);
  }

  void attend(int64_t batch, int64_t head, int64_t first, int64_t rows, const Rows<const T>& q, const Rows<T>& out, C* lse) {
    read_rows(q, batch, head, first, rows, s_.width, padded_, static_cast<C>(call_.scale), rotation_, queries_);
    std::fill_n(output_, rows * padded_, C(0));
    std::fill_n(max_, rows, -std::numeric_limits<C>::infinity());
    std::fill_n(sum_, rows * kLanes<C>, C(0));
    const int64_t last_key = visible_keys(s_, call_.causal, first + rows - 1);
    for (int64_t key = 0; key < last_key; key += kKeyTile) {
      // Keys of this tile that a row of the tile sees; a block of rows sees what its last row sees.
      const auto seen = [&](int64_t row) { return std::clamp<int64_t>(visible_keys(s_, call_.causal, first + row) - key, 0, kKeyTile); };
      tile_product<false>(rows, s_.width, queries_, padded_, TileMatrix<C>{keys_ + key * padded_, kPanel<C>, kPanel<C> * padded_}, scores_,
                          kKeyTile, false, [&](int64_t m, int64_t count) {
                            return TileRange{0, s_.width, seen(m + count - 1)};
                          });
      for (int64_t r = 0; r < rows; ++r) fold_scores(r, seen(r));
      tile_product<false>(rows, kKeyTile, scores_, kKeyTile, TileMatrix<C>{values_ + key * padded_, padded_, kPanel<C>}, output_, padded_,
                          true, [&](int64_t m, int64_t count) {
                            return TileRange{0, seen(m + count - 1), padded_};
                          });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const C sum = fold_sum<C>(load_lanes(sum_ + r * kLanes<C>));
      const C inverse = sum == C(0) ? C(0) : C(1) / sum;
      T* __restrict to = out.at(batch, head, first + r);
      const C* __restrict from = output_ + r * padded_;
      for (int64_t i = 0; i < s_.width; ++i) to[i] = static_cast<T>(from[i] * inverse);
      if (lse != nullptr) lse[(batch * s_.heads + head) * s_.queries + first + r] = max_[r] + math::log(sum);
    }
  }

  // Turns row r's first `count` scores into exp(score - m'), the rest that a product may read into 0, and rescales what came before.
  void fold_scores(int64_t r, int64_t count) {
    constexpr C kLowest = -std::numeric_limits<C>::infinity();
    C* row = scores_ + r * kKeyTile;
    const int64_t stop = std::min(kKeyTile, round_up(count + kBlockRows, kLanes<C>));
    fill_tail(row, count, stop, kLowest);
    Lanes<C> most = Lanes<C>{} + kLowest;
    for (int64_t i = 0; i < stop; i += kLanes<C>) {
      const Lanes<C> v = load_lanes(row + i);
      most = v > most ? v : most;
    }
    const C before = max_[r];
    const C largest = fold_max<C>(most);
    const C after = largest > before ? largest : before;
    const C origin = after == kLowest ? C(0) : after;
    Lanes<C> added{};
    for (int64_t i = 0; i < stop; i += kLanes<C>) {
      const Lanes<C> e = map_lanes<C>(load_lanes(row + i), [origin](C x) { return exp_flushed(x - origin); });
      store_lanes<C>(row + i, e);
      added += e;
    }
    C* sum = sum_ + r * kLanes<C>;
    if (after > before) {
      const C shrink = exp_flushed(before - origin);
      store_lanes<C>(sum, load_lanes(sum) * shrink + added);
      C* __restrict output = output_ + r * padded_;
      for (int64_t i = 0; i < padded_; ++i) output[i] *= shrink;
      max_[r] = after;
    } else {
      store_lanes<C>(sum, load_lanes(sum) + added);
    }
  }

  const AttentionCall& call_;
  const AttentionSizes& s_;
  int64_t padded_;
  Rotation<C> rotation_;
  int64_t used_bytes_ = 0;
  C *keys_, *values_, *key_rows_, *queries_, *scores_, *output_, *max_, *sum_;
};

}  // namespace

template <class T>
void attention_forward(const AttentionCall& call, const AttentionSizes& sizes, const Tensor& q, const Tensor& k, const Tensor& v,
                       Tensor& out, Tensor& lse) {
  using C = compute_t<T>;
  const int64_t units = sizes.batch * sizes.heads * sizes.query_tiles();
  if (units == 0) return;
  const int64_t pieces = std::min<int64_t>(thread_count(), units);
  const int64_t piece_bytes = ForwardWorker<T>(call, sizes, nullptr).used_bytes();
  const Tensor workspace = Tensor::empty({pieces, piece_bytes}, DType::u8, Category::workspace, "attention workspace");
  std::byte* base = workspace.raw_data();
  const Rows<const T> q_rows(q);
  const Rows<const T> k_rows(k);
  const Rows<const T> v_rows(v);
  const Rows<T> out_rows(out);
  C* lse_data = lse.defined() ? lse.data<C>() : nullptr;
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      ForwardWorker<T>(call, sizes, base + p * piece_bytes)
          .run(units * p / pieces, units * (p + 1) / pieces, q_rows, k_rows, v_rows, out_rows, lse_data);
  });
}

template void attention_forward<float>(const AttentionCall&, const AttentionSizes&, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                                       Tensor&);
template void attention_forward<double>(const AttentionCall&, const AttentionSizes&, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                                        Tensor&);
template void attention_forward<bf16>(const AttentionCall&, const AttentionSizes&, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                                      Tensor&);
template void attention_forward<f16>(const AttentionCall&, const AttentionSizes&, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                                     Tensor&);

}  // namespace rz::cpu
