// The attention family on the CPU: checks of shapes, choice of types, and the rotary embedding on its own.
#include "runtime/kernels/attention.h"

#include "runtime/core/op_profile.h"
#include "runtime/core/parallel.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/attention_passes.h"

namespace rz::cpu {

namespace {

bool last_is_dense(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1; }

AttentionSizes checked_sizes(const AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v) {
  for (const Tensor* t : {&q, &k, &v})
    RZ_CHECK(t->rank() == 4 && last_is_dense(*t) && t->dtype() == q.dtype(),
             "attention: q {}, k {} and v {} must have four dimensions, one type, and a contiguous last dimension", q.str(), k.str(),
             v.str());
  const AttentionSizes s{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
  RZ_CHECK(k.shape() == v.shape() && k.size(0) == s.batch && k.size(3) == s.width && s.width > 0,
           "attention: q {}, k {} and v {} do not fit: [B, H, T, D], [B, Hkv, S, D] and [B, Hkv, S, D]", q.str(), k.str(), v.str());
  RZ_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0,
           "attention: {} query heads of q {} are not a multiple of {} key/value heads of k {}", s.heads, q.str(), s.kv_heads, k.str());
  if (call.rope.defined())
    RZ_CHECK(s.queries == s.keys, "attention: rotary positions need as many queries as keys, not q {} with k {}", q.str(), k.str());
  return s;
}

template <class C>
void check_table(const Tensor& table, int64_t width, int64_t offset, int64_t tokens, const Tensor& x) {
  RZ_CHECK(table.rank() == 2 && table.is_contiguous() && table.size(1) == width && width % 2 == 0,
           "rope: a table {} does not fit the head width of {}", table.str(), x.str());
  RZ_CHECK(table.dtype() == dtype_of<C>, "rope: a table {} does not have the compute type of {}", table.str(), x.str());
  RZ_CHECK(offset >= 0 && offset <= table.size(0) - tokens, "rope: positions [{}, {}) of {} are outside the table {}", offset,
           static_cast<uint64_t>(offset) + static_cast<uint64_t>(tokens), x.str(), table.str());
}

// Of one product of queries and keys, or of weights and values; masked pairs do not count.
double product_flops(const AttentionSizes& s, bool causal) {
  int64_t pairs = 0;
  for (int64_t row = 0; row < s.queries; ++row) pairs += visible_keys(s, causal, row);
  return 2.0 * static_cast<double>(s.batch * s.heads * s.width) * static_cast<double>(pairs);
}

class CpuAttentionKernels final : public AttentionKernels {
 public:
  void forward(const AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out, Tensor& lse) override {
    const AttentionSizes s = checked_sizes(call, q, k, v);
    RZ_CHECK(out.shape() == q.shape() && last_is_dense(out) && out.dtype() == q.dtype(), "attention: the output {} does not fit q {}",
             out.str(), q.str());
    RZ_CHECK(!lse.defined() || (lse.numel() == s.batch * s.heads * s.queries && lse.is_contiguous()),
             "attention: log-sum-exp {} does not fit q {}", lse.str(), q.str());
    count_flops(2 * product_flops(s, call.causal));
    dispatch_floating(q.dtype(), "attention", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (call.rope.defined()) check_table<compute_t<T>>(call.rope, s.width, call.rope_offset, s.queries, q);
      attention_forward<T>(call, s, q, k, v, out, lse);
    });
  }

  void backward(const AttentionCall& call, const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                const Tensor& lse, Tensor& dq, Tensor& dk, Tensor& dv, bool accumulate) override {
    const AttentionSizes s = checked_sizes(call, q, k, v);
    const auto check = [](const Tensor& t, const Tensor& like) {
      RZ_CHECK(!t.defined() || (t.shape() == like.shape() && last_is_dense(t) && t.dtype() == like.dtype()),
               "attention backward: {} does not fit {}", t.str(), like.str());
    };
    for (const Tensor* t : {&grad, &out, static_cast<const Tensor*>(&dq)}) check(*t, q);
    check(dk, k);
    check(dv, v);
    count_flops(4 * product_flops(s, call.causal));  // the scores computed again are not the model's
    dispatch_floating(q.dtype(), "attention", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (call.rope.defined()) check_table<compute_t<T>>(call.rope, s.width, call.rope_offset, s.queries, q);
      attention_backward<T>(call, s, grad, q, k, v, out, lse, dq, dk, dv, accumulate);
    });
  }

  void rope(const Tensor& x, const Tensor& table, int64_t offset, bool inverse, Tensor& y, bool accumulate) override {
    RZ_CHECK(x.rank() == 4 && x.shape() == y.shape() && x.dtype() == y.dtype() && last_is_dense(x) && last_is_dense(y),
             "rope: {} and {} must be [B, T, H, D] of one shape and type with a contiguous last dimension", x.str(), y.str());
    dispatch_floating(x.dtype(), "rope", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = compute_t<T>;
      const int64_t tokens = x.size(1);
      const int64_t heads = x.size(2);
      const int64_t half = x.size(3) / 2;
      check_table<C>(table, x.size(3), offset, tokens, x);
      const T* from = x.data<T>();
      T* to = y.data<T>();
      const C* angles = table.data<C>() + offset * 2 * half;
      const C sign = inverse ? C(-1) : C(1);
      parallel_for(x.size(0) * tokens, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, heads * half * 2)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t bt = begin; bt < end; ++bt) {
                       const int64_t batch = bt / tokens;
                       const int64_t token = bt % tokens;
                       const C* cosine = angles + token * 2 * half;
                       for (int64_t h = 0; h < heads; ++h) {
                         const T* __restrict in = from + batch * x.stride(0) + token * x.stride(1) + h * x.stride(2);
                         T* __restrict out = to + batch * y.stride(0) + token * y.stride(1) + h * y.stride(2);
                         for (int64_t i = 0; i < half; ++i) {
                           const C c = cosine[i];
                           const C s = sign * cosine[half + i];
                           const C low = static_cast<C>(in[i]) * c - static_cast<C>(in[half + i]) * s;
                           const C high = static_cast<C>(in[half + i]) * c + static_cast<C>(in[i]) * s;
                           out[i] = static_cast<T>(accumulate ? static_cast<C>(out[i]) + low : low);
                           out[half + i] = static_cast<T>(accumulate ? static_cast<C>(out[half + i]) + high : high);
                         }
                       }
                     }
                   });
    });
  }
};

}  // namespace

AttentionKernels& attention_kernels() {
  static CpuAttentionKernels kernels;
  return kernels;
}

}  // namespace rz::cpu
