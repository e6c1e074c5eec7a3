#include "runtime/ops/embedding.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

Tensor embedding(const Tensor& ids, const Tensor& weight) {
  RZ_CHECK(weight.rank() == 2 && is_floating(weight.dtype()), "embedding: the table must be a floating-point matrix, not {}", weight.str());
  RZ_CHECK(ids.dtype() == DType::i32 || ids.dtype() == DType::i64, "embedding: ids must be i32 or i64, not {}", ids.str());
  RZ_CHECK(ids.rank() < Shape::kMaxRank, "embedding: ids {} have too many dimensions", ids.str());
  EmbeddingKernels& kernels = *backend(weight.device()).embedding;
  const bool keeps = autograd::needs_grad({weight});
  const Tensor dense = to_dense(ids, keeps ? ambient_category() : Category::workspace);
  const Tensor flat = dense.view_reshape({dense.numel()});
  const int64_t width = weight.size(1);
  std::array<int64_t, Shape::kMaxRank> extents{};
  for (int d = 0; d < ids.rank(); ++d) extents[static_cast<size_t>(d)] = ids.size(d);
  extents[static_cast<size_t>(ids.rank())] = width;
  Tensor y =
      Tensor::empty(Shape(std::span<const int64_t>(extents.data(), static_cast<size_t>(ids.rank() + 1))), weight.dtype(), "embedding");
  Tensor rows = y.view_reshape({flat.numel(), width});
  kernels.forward(flat, to_dense(weight), rows);
  if (!keeps) return y;
  return autograd::record("embedding", y, {weight},
                          [&kernels, saved = autograd::Saved(flat)](const Tensor& grad, autograd::InputGradients& in) {
                            const Tensor rows_grad = to_rows(grad);
                            in.into(0, [&](Tensor& out, bool accumulate) { kernels.backward(saved.get(), rows_grad, out, accumulate); });
                          });
}

}  // namespace rz::ops
