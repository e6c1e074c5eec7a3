// Row-wise softmax and cross entropy. All matrices are contiguous [N, V], one row per distribution; equations and the treatment of
// rows that are -inf throughout are in ops/softmax.h and ops/loss.h.
//
// Sums inside a row are taken in a fixed order, rows are independent, and row losses are added in row order: the same bits for
// any number of threads.
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

// What the rows of a batch add up to, in double.
struct CrossEntropySum {
  double sum = 0;
  int64_t count = 0;  // rows whose target is not ignored
};

class LossKernels {
 public:
  virtual ~LossKernels() = default;

  virtual void softmax(const Tensor& x, Tensor& y) = 0;
  virtual void softmax_backward(const Tensor& grad, const Tensor& y, Tensor& dx, bool accumulate) = 0;

  virtual void log_softmax(const Tensor& x, Tensor& y) = 0;
  virtual void log_softmax_backward(const Tensor& grad, const Tensor& y, Tensor& dx, bool accumulate) = 0;

  // y: [N], of x's type.
  virtual void logsumexp(const Tensor& x, Tensor& y) = 0;
  virtual void logsumexp_backward(const Tensor& grad, const Tensor& x, const Tensor& y, Tensor& dx, bool accumulate) = 0;

  // targets: [N] of i32 or i64; lse: [N] of the logits' compute type, receives the log-sum-exp of each row. A target outside
  // [0, V) that is not ignore_index is an rz::Error naming value and position (counted from first_row).
  virtual CrossEntropySum cross_entropy(const Tensor& logits, const Tensor& targets, int64_t ignore_index, int64_t first_row,
                                        Tensor& lse) = 0;
  // dlogits = scale * (softmax(logits) - one_hot(target)), 0 in ignored rows. Without accumulate, dlogits may be logits itself.
  virtual void cross_entropy_backward(const Tensor& logits, const Tensor& targets, const Tensor& lse, int64_t ignore_index, double scale,
                                      Tensor& dlogits, bool accumulate) = 0;
};

}  // namespace rz
