#include "runtime/kernels/cpu/elementwise_driver.h"

#include <algorithm>

#include "runtime/core/parallel.h"
#include "runtime/kernels/cpu/convert.h"
#include "runtime/kernels/cpu/strided.h"

namespace rz::cpu {

namespace {

constexpr int64_t kBlock = 512;       // elements of a buffer
constexpr int64_t kRowMinimum = 192;  // innermost extents from here on are walked row by row, without buffers where possible
constexpr int64_t kGrain = 8192;

template <class C>
class Walker {
 public:
  Walker(const IndexSpace& space, Loop<C> loop, bool accumulate, OpScalars scalars)
      : space_(space),
        inputs_(space.count - 1),
        loop_(loop),
        accumulate_(accumulate),
        p0_(static_cast<C>(scalars.p0)),
        p1_(static_cast<C>(scalars.p1)) {
    for (int k = 0; k < inputs_; ++k)
      if (space.operands[static_cast<size_t>(k)].constant) load(k, 0, kBlock);
  }

  // The flat positions [begin, end).
  void run(int64_t begin, int64_t end) {
    const int64_t inner = space_.inner();
    const bool by_row = space_.rank > 1 && inner >= kRowMinimum;
    for (int64_t i = begin; i < end;) {
      const int64_t n = by_row ? std::min(inner - i % inner, end - i) : end - i;
      segment(i, n, by_row);
      i += n;
    }
  }

 private:
  const Operand& operand(int k) const { return space_.operands[static_cast<size_t>(k)]; }
  const Operand& output() const { return operand(inputs_); }

  // Contiguous in the computation's type over a segment (one row, or the whole space).
  bool is_direct(const Operand& o, bool within_row) const {
    if (o.dtype != dtype_of<C>) return false;
    return o.dense || (within_row && o.strides[static_cast<size_t>(space_.rank - 1)] == 1);
  }

  int64_t offset_of(const Operand& o, int64_t position) const {
    if (o.dense) return position;
    int64_t offset = 0;
    for (int d = space_.rank - 1; d >= 0; --d) {
      const auto u = static_cast<size_t>(d);
      offset += position % space_.extents[u] * o.strides[u];
      position /= space_.extents[u];
    }
    return offset;
  }

  void segment(int64_t begin, int64_t n, bool within_row) {
    const C* in[3] = {};
    bool buffered[3] = {};
    bool all_direct = !accumulate_ && is_direct(output(), within_row);
    for (int k = 0; k < inputs_; ++k) {
      if (operand(k).constant) {
        in[k] = buffer_[k];
        all_direct = false;  // its buffer is a block long
      } else if (is_direct(operand(k), within_row)) {
        in[k] = reinterpret_cast<const C*>(operand(k).data) + offset_of(operand(k), begin);
      } else {
        buffered[k] = true;
        all_direct = false;
      }
    }
    const bool out_direct = is_direct(output(), within_row);
    C* out = out_direct ? reinterpret_cast<C*>(output().data) + offset_of(output(), begin) : nullptr;
    const int64_t whole = n / kLoopMultiple * kLoopMultiple;
    const int64_t step = all_direct ? std::max<int64_t>(whole, 1) : kBlock;
    for (int64_t i = 0; i < n;) {
      // A block, then the remainder in padded buffers.
      const int64_t m = i < whole ? std::min(step, whole - i) : n - i;
      const bool padded = i >= whole;
      const C* block_in[3] = {};
      for (int k = 0; k < inputs_; ++k) {
        if (operand(k).constant) {
          block_in[k] = buffer_[k];
        } else if (buffered[k]) {
          load(k, begin + i, m);
          block_in[k] = buffer_[k];
        } else if (padded) {
          std::copy_n(in[k] + i, m, buffer_[k]);
          block_in[k] = buffer_[k];
        } else {
          block_in[k] = in[k] + i;
        }
        if (padded && !operand(k).constant) std::fill(buffer_[k] + m, buffer_[k] + kLoopMultiple, C(1));
      }
      const bool in_place = out_direct && !accumulate_ && !padded;
      C* to = in_place ? out + i : result_;
      loop_(block_in[0], inputs_ > 1 ? block_in[1] : block_in[0], inputs_ > 2 ? block_in[2] : block_in[0], to, padded ? kLoopMultiple : m,
            p0_, p1_);
      if (!in_place) {
        if (out_direct)
          store_run<C, C>(result_, out + i, 1, m, accumulate_);
        else
          store(begin + i, m);
      }
      i += m;
    }
  }

  void load(int k, int64_t begin, int64_t n) {
    const Operand& o = operand(k);
    C* to = buffer_[k];
    dispatch(o.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T* from = reinterpret_cast<const T*>(o.data);
      if (o.constant) return load_run(from, 0, to, n);
      if (o.dense) return load_run(from + begin, 1, to, n);
      const int64_t stride = o.strides[static_cast<size_t>(space_.rank - 1)];
      for_each_run(space_, o, begin, n, [&](int64_t offset, int64_t length) {
        load_run(from + offset, stride, to, length);
        to += length;
      });
    });
  }

  void store(int64_t begin, int64_t n) {
    const Operand& o = output();
    const C* from = result_;
    dispatch(o.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* to = reinterpret_cast<T*>(o.data);
      if (o.dense) return store_run(from, to + begin, 1, n, accumulate_);
      const int64_t stride = o.strides[static_cast<size_t>(space_.rank - 1)];
      for_each_run(space_, o, begin, n, [&](int64_t offset, int64_t length) {
        store_run(from, to + offset, stride, length, accumulate_);
        from += length;
      });
    });
  }

  const IndexSpace& space_;
  int inputs_;
  Loop<C> loop_;
  bool accumulate_;
  C p0_, p1_;
  alignas(64) C buffer_[3][kBlock];
  alignas(64) C result_[kBlock];
};

bool needs_double(DType t) { return t == DType::f64 || t == DType::i32 || t == DType::i64; }

template <class C>
void walk(const IndexSpace& space, Loop<C> loop, bool accumulate, OpScalars scalars) {
  parallel_for(space.numel, kGrain, [&](int64_t begin, int64_t end) { Walker<C>(space, loop, accumulate, scalars).run(begin, end); });
}

}  // namespace

void run_elementwise(const Loops& loops, std::span<const Tensor* const> inputs, Tensor& out, bool accumulate, OpScalars scalars) {
  if (out.numel() == 0) return;
  std::array<const Tensor*, IndexSpace::kMaxOperands> all{};
  bool wide = needs_double(out.dtype());
  for (size_t k = 0; k < inputs.size(); ++k) {
    all[k] = inputs[k];
    wide = wide || needs_double(inputs[k]->dtype());
  }
  all[inputs.size()] = &out;
  const IndexSpace space = make_index_space(out.shape(), std::span(all.data(), inputs.size() + 1));
  if (wide)
    walk<double>(space, loops.f64, accumulate, scalars);
  else
    walk<float>(space, loops.f32, accumulate, scalars);
}

}  // namespace rz::cpu
