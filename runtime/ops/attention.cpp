#include "runtime/ops/attention.h"

#include <cmath>

#include "runtime/autograd/node.h"
#include "runtime/kernels/attention.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

namespace {

Tensor last_dense(const Tensor& x, Category category) {
  return x.stride(-1) == 1 || x.size(-1) <= 1 ? x.view_alias() : to_dense(x, category);
}

double resolved_scale(double scale, int64_t width) { return scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(width)); }

// [B, heads, T, D] over fresh [B, T, heads, D] memory.
Tensor empty_by_token(const Tensor& like, const char* owner) {
  return Tensor::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.dtype(), owner).view_permute({0, 2, 1, 3});
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
  RZ_CHECK(q.rank() == 4 && is_floating(q.dtype()), "attention: q must be a floating-point [B, H, T, D], not {}", q.str());
  AttentionKernels& kernels = *backend(q.device()).attention;
  AttentionCall call;
  call.causal = options.causal;
  call.scale = resolved_scale(options.scale, q.size(3));
  const bool keeps = autograd::needs_grad({q, k, v});
  const Category category = keeps ? ambient_category() : Category::workspace;
  const Tensor q_in = last_dense(q, category);
  const Tensor k_in = last_dense(k, category);
  const Tensor v_in = last_dense(v, category);
  Tensor out = empty_by_token(q, "attention");
  Tensor lse = keeps ? Tensor::empty({q.size(0), q.size(1), q.size(2)}, compute_dtype(q.dtype()), "attention log-sum-exp") : Tensor();
  kernels.forward(call, q_in, k_in, v_in, out, lse);
  if (!keeps) return out;
  return autograd::record("scaled_dot_product_attention", out, {q, k, v},
                          [&kernels, call, sq = autograd::Saved(q_in), sk = autograd::Saved(k_in), sv = autograd::Saved(v_in),
                           so = autograd::Saved(out), lse](const Tensor& grad, autograd::InputGradients& in) {
                            const auto gradient_of = [&](size_t i, const Tensor& input) {
                              return in.wants(i) ? empty_by_token(input, "attention gradient") : Tensor();
                            };
                            Tensor dq = gradient_of(0, sq.get());
                            Tensor dk = gradient_of(1, sk.get());
                            Tensor dv = gradient_of(2, sv.get());
                            kernels.backward(call, last_dense(grad, Category::workspace), sq.get(), sk.get(), sv.get(), so.get(), lse, dq,
                                             dk, dv, false);
                            in.add(0, dq);
                            in.add(1, dk);
                            in.add(2, dv);
                          });
}

namespace {

// Queries, keys and values of a fused projection [B, T, (H + 2 Hkv) D] as [B, heads, T, D] views.
struct QkvViews {
  Tensor q, k, v;

  QkvViews(const Tensor& qkv, int64_t heads, int64_t kv_heads) {
    const int64_t width = qkv.size(2) / (heads + 2 * kv_heads);
    const Tensor by_head = qkv.view_reshape({qkv.size(0), qkv.size(1), heads + 2 * kv_heads, width}).view_permute({0, 2, 1, 3});
    q = by_head.view_slice(1, 0, heads);
    k = by_head.view_slice(1, heads, heads + kv_heads);
    v = by_head.view_slice(1, heads + kv_heads, heads + 2 * kv_heads);
  }
};

// [B, T, H D] as [B, H, T, D].
Tensor view_by_head(const Tensor& x, int64_t heads) {
  return x.view_reshape({x.size(0), x.size(1), heads, x.size(2) / heads}).view_permute({0, 2, 1, 3});
}

}  // namespace

Tensor attention_qkv(const Tensor& qkv, const AttentionQkvOptions& options) {
  const int64_t heads = options.heads;
  const int64_t kv_heads = options.kv_heads == 0 ? heads : options.kv_heads;
  RZ_CHECK(qkv.rank() == 3 && is_floating(qkv.dtype()) && heads > 0 && kv_heads > 0 && heads % kv_heads == 0 &&
               qkv.size(2) % (heads + 2 * kv_heads) == 0 && qkv.size(2) > 0,
           "attention: qkv {} is not a floating-point [B, T, (H + 2 Hkv) D] with H = {} and Hkv = {}", qkv.str(), heads, kv_heads);
  AttentionKernels& kernels = *backend(qkv.device()).attention;
  const int64_t width = qkv.size(2) / (heads + 2 * kv_heads);
  AttentionCall call;
  call.causal = options.causal;
  call.scale = resolved_scale(options.scale, width);
  call.rope_offset = options.rope_offset;
  if (options.rope != nullptr) call.rope = options.rope->values.view_alias();
  const bool keeps = autograd::needs_grad({qkv});
  const Tensor dense = to_dense(qkv, keeps ? ambient_category() : Category::workspace);
  const QkvViews views(dense, heads, kv_heads);
  Tensor out = Tensor::empty({qkv.size(0), qkv.size(1), heads * width}, qkv.dtype(), "attention");
  Tensor out_by_head = view_by_head(out, heads);
  Tensor lse = keeps ? Tensor::empty({qkv.size(0), heads, qkv.size(1)}, compute_dtype(qkv.dtype()), "attention log-sum-exp") : Tensor();
  kernels.forward(call, views.q, views.k, views.v, out_by_head, lse);
  if (!keeps) return out;
  return autograd::record("attention_qkv", out, {qkv},
                          [&kernels, call, heads, kv_heads, s_qkv = autograd::Saved(dense), s_out = autograd::Saved(out), lse](
                              const Tensor& grad, autograd::InputGradients& in) {
                            const QkvViews from(s_qkv.get(), heads, kv_heads);
                            const Tensor g = to_dense(grad);
                            in.into(0, [&](Tensor& dqkv, bool accumulate) {
                              QkvViews to(dqkv, heads, kv_heads);
                              kernels.backward(call, view_by_head(g, heads), from.q, from.k, from.v, view_by_head(s_out.get(), heads), lse,
                                               to.q, to.k, to.v, accumulate);
                            });
                          });
}

}  // namespace rz::ops
