// Softmax, its logarithm and log-sum-exp along one dimension, stable for any finite input (the row maximum is subtracted first).
//
// Rows that are -inf throughout (everything masked) are no accident but a value: softmax is 0 there, log_softmax and logsumexp
// are -inf, and all three give such a row a zero gradient. A NaN or +inf anywhere in a row makes the row NaN.
#pragma once

#include "runtime/core/tensor.h"

namespace rz::ops {

// exp(x_i) / sum_j exp(x_j) along `dim`. Another dimension than the last costs a transposing copy
// and gives a transposed view. Keeps y for backward: dx = y * (g - sum(g * y)).
Tensor softmax(const Tensor& x, int dim = -1);

// x_i - log sum_j exp(x_j) along `dim`. Keeps y: dx = g - exp(y) * sum(g).
Tensor log_softmax(const Tensor& x, int dim = -1);

// log sum_j exp(x_j) along `dim`, which is removed from the shape. Keeps x and y: dx = g * exp(x - y).
Tensor logsumexp(const Tensor& x, int dim = -1);

}  // namespace rz::ops
