#include "runtime/ops/loss.h"

#include "runtime/autograd/node.h"
#include "runtime/ops/dense.h"

namespace rz::ops {

namespace {

void check_rows(const Tensor& x, const Tensor& targets) {
  RZ_CHECK(x.rank() >= 1 && is_floating(x.dtype()), "cross entropy needs floating-point rows, not {}", x.str());
  RZ_CHECK(targets.dtype() == DType::i32 || targets.dtype() == DType::i64, "cross entropy: targets must be i32 or i64, not {}",
           targets.str());
  RZ_CHECK(targets.shape() == x.shape().without(-1), "cross entropy: targets {} do not fit rows of {}", targets.str(), x.str());
}

// What one row's loss is multiplied by.
double row_factor(const CrossEntropyOptions& options, int64_t count) {
  return options.reduction == LossReduction::sum ? options.scale : options.scale / static_cast<double>(std::max<int64_t>(1, count));
}

Tensor flat_targets(const Tensor& targets, bool keeps) {
  const Tensor dense = to_dense(targets, keeps ? ambient_category() : Category::workspace);
  return dense.view_reshape({dense.numel()});
}

}  // namespace

CrossEntropyResult cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  check_rows(logits, targets);
  LossKernels& kernels = *backend(logits.device()).loss;
  const bool keeps = autograd::needs_grad({logits});
  const Tensor rows = to_rows(logits, keeps ? ambient_category() : Category::workspace);
  const Tensor flat = flat_targets(targets, keeps);
  Tensor lse = Tensor::empty({rows.size(0)}, compute_dtype(logits.dtype()), "cross entropy log-sum-exp");
  const auto total = kernels.cross_entropy(rows, flat, options.ignore_index, 0, lse);
  const double factor = row_factor(options, total.count);
  CrossEntropyResult result;
  result.sum = total.sum;
  result.count = total.count;
  result.loss = Tensor::full({}, total.sum * factor, compute_dtype(logits.dtype()), "loss");
  if (!keeps) return result;
  result.loss = autograd::record(
      "cross_entropy", result.loss, {logits},
      [&kernels, saved_logits = autograd::Saved(rows), saved_targets = autograd::Saved(flat), lse, factor, ignore = options.ignore_index,
       overwrite = options.overwrite_logits, shape = logits.shape()](const Tensor& grad, autograd::InputGradients& in) {
        const double scale = factor * grad.item();
        const Tensor& kept = saved_logits.get();
        if (!overwrite) {
          in.into(0, [&](Tensor& out, bool accumulate) {
            Tensor dlogits = view_rows(out);
            kernels.cross_entropy_backward(kept, saved_targets.get(), lse, ignore, scale, dlogits, accumulate);
          });
          return;
        }
        if (!in.wants(0)) return;
        Tensor dlogits = kept.view_alias();
        kernels.cross_entropy_backward(kept, saved_targets.get(), lse, ignore, scale, dlogits, false);
        dlogits.bump_version();
        in.add(0, dlogits.view_reshape(shape));
      });
  return result;
}

namespace {

// Rows [begin, begin + count) at a time of x [N, D] against weight [V, D], their logits in one workspace.
struct ChunkedHead {
  Tensor x, weight, targets;
  int64_t chunk_rows;
  Tensor buffer;

  ChunkedHead(Tensor x_rows, Tensor w, Tensor flat, int64_t chunk)
      : x(std::move(x_rows)),
        weight(std::move(w)),
        targets(std::move(flat)),
        chunk_rows(chunk),
        buffer(Tensor::empty({chunk, weight.size(0)}, x.dtype(), Category::workspace, "chunk of logits")) {}

  // body(first row, x of the chunk, targets of the chunk, its logits)
  template <class F>
  void for_chunks(F body) {
    MatmulKernels& matmul = *backend(x.device()).matmul;
    for (int64_t begin = 0; begin < x.size(0); begin += chunk_rows) {
      const int64_t end = std::min(x.size(0), begin + chunk_rows);
      Tensor logits = buffer.view_slice(0, 0, end - begin);
      const Tensor x_chunk = x.view_slice(0, begin, end);
      matmul.matmul(x_chunk, weight, logits, {.transpose_b = true});
      body(begin, x_chunk, targets.view_slice(0, begin, end), logits);
    }
  }
};

// Every chunk reads and packs the weight three times and adds to its gradient: for few rows that takes longer than the arithmetic. So a
// chunk's logits may take a third of the weight's bytes, of which the model holds several times as much. Chunks are about equal.
int64_t default_chunk_rows(int64_t rows, int64_t classes, int64_t width, DType dtype) {
  constexpr int64_t kChunkBytes = int64_t{8} << 20;
  const int64_t by_bytes = std::max<int64_t>(32, kChunkBytes / std::max<int64_t>(1, classes * static_cast<int64_t>(size_bytes(dtype))));
  int64_t most = std::max(by_bytes, width / 3);
  // In 16 bits every addition to the weight's gradient rounds it.
  constexpr int64_t kMostRoundings = 8;
  if (dtype == DType::bf16 || dtype == DType::f16) most = std::max(most, (rows + kMostRoundings - 1) / kMostRoundings);
  const int64_t chunks = std::max<int64_t>(1, (rows + most - 1) / most);
  return (rows + chunks - 1) / chunks;
}

}  // namespace

CrossEntropyResult linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets, const CrossEntropyOptions& options,
                                        int64_t chunk_rows) {
  check_rows(x, targets);
  RZ_CHECK(weight.rank() == 2 && weight.size(1) == x.size(-1) && weight.dtype() == x.dtype(),
           "linear_cross_entropy: a weight {} does not fit x {}", weight.str(), x.str());
  RZ_CHECK(chunk_rows >= 0, "linear_cross_entropy: chunks of {} rows", chunk_rows);
  LossKernels& kernels = *backend(x.device()).loss;
  const bool keeps = autograd::needs_grad({x, weight});
  const Tensor rows = to_rows(x, keeps ? ambient_category() : Category::workspace);
  const Tensor flat = flat_targets(targets, keeps);
  const int64_t chunk =
      std::clamp<int64_t>(chunk_rows == 0 ? default_chunk_rows(rows.size(0), weight.size(0), weight.size(1), x.dtype()) : chunk_rows, 1,
                          std::max<int64_t>(1, rows.size(0)));
  Tensor lse = Tensor::empty({rows.size(0)}, compute_dtype(x.dtype()), "cross entropy log-sum-exp");
  CrossEntropyResult result;
  ChunkedHead(rows, weight, flat, chunk).for_chunks([&](int64_t begin, const Tensor&, const Tensor& chunk_targets, const Tensor& logits) {
    Tensor chunk_lse = lse.view_slice(0, begin, begin + logits.size(0));
    const auto part = kernels.cross_entropy(logits, chunk_targets, options.ignore_index, begin, chunk_lse);
    result.sum += part.sum;
    result.count += part.count;
  });
  const double factor = row_factor(options, result.count);
  result.loss = Tensor::full({}, result.sum * factor, compute_dtype(x.dtype()), "loss");
  if (!keeps) return result;
  RZ_CHECK(!x.same(weight), "linear_cross_entropy: x and weight are one tensor {}", x.str());
  result.loss = autograd::record(
      "linear_cross_entropy", result.loss, {x, weight},
      [&kernels, saved_x = autograd::Saved(rows), saved_weight = autograd::Saved(weight), saved_targets = autograd::Saved(flat), lse,
       factor, chunk, ignore = options.ignore_index](const Tensor& grad, autograd::InputGradients& in) {
        const double scale = factor * grad.item();
        MatmulKernels& matmul = *backend(grad.device()).matmul;
        // dx is null where it is not wanted, dweight too.
        const auto run = [&](Tensor* dx, bool accumulate_x, Tensor* dweight, bool accumulate_weight) {
          ChunkedHead(saved_x.get(), saved_weight.get(), saved_targets.get(), chunk)
              .for_chunks([&](int64_t begin, const Tensor& x_chunk, const Tensor& chunk_targets, Tensor& logits) {
                const int64_t end = begin + logits.size(0);
                kernels.cross_entropy_backward(logits, chunk_targets, lse.view_slice(0, begin, end), ignore, scale, logits, false);
                if (dx != nullptr) {
                  Tensor out = dx->view_slice(0, begin, end);
                  matmul.matmul(logits, saved_weight.get(), out, {.accumulate = accumulate_x});
                }
                if (dweight != nullptr)
                  matmul.matmul(logits, x_chunk, *dweight, {.transpose_a = true, .accumulate = accumulate_weight || begin > 0});
              });
          if (saved_x.get().size(0) == 0 && dweight != nullptr && !accumulate_weight) backend(grad.device()).elementwise->fill(*dweight, 0);
        };
        if (!in.wants(0)) {
          in.into(1, [&](Tensor& dweight, bool accumulate) { run(nullptr, false, &dweight, accumulate); });
          return;
        }
        in.into(0, [&](Tensor& out, bool accumulate_x) {
          Tensor dx = view_rows(out);
          if (!in.wants(1)) return run(&dx, accumulate_x, nullptr, false);
          in.into(1, [&](Tensor& dweight, bool accumulate) { run(&dx, accumulate_x, &dweight, accumulate); });
        });
      });
  return result;
}

}  // namespace rz::ops
