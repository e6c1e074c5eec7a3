// Cross entropy against class indices, fused with log-softmax.
//
// Memory, for N rows of V classes: the forward pass keeps one log-sum-exp per row; the backward pass makes one tensor of the
// logits' size, or none:
//   cross_entropy                                 logits + gradient of the logits
//   cross_entropy with overwrite_logits           logits only; their gradient is written over them
//   linear_cross_entropy (with the output layer)  chunk_rows x V, once; costs one more product x W^T in backward
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz::ops {

enum class LossReduction : uint8_t { sum, mean };

struct CrossEntropyOptions {
  int64_t ignore_index = -1;  // rows with this target count neither in the sum nor in the mean and get a zero gradient
  LossReduction reduction = LossReduction::mean;
  double scale = 1;           // multiplies the reduced loss; sum with 1 / (tokens of the global batch) gives a rank's share
  // Backward writes the gradient over the logits. For logits that nobody else reads: another op that saved them fails with the
  // version check in its own backward, and so does a second backward through this one.
  bool overwrite_logits = false;
};

struct CrossEntropyResult {
  Tensor loss;        // scalar, recorded for backward: scale * (sum or mean); f64 for f64 logits, else f32
  double sum = 0;     // of the rows that count, neither scaled nor averaged, in double
  int64_t count = 0;  // rows that count; with none of them loss and gradients are 0, the mean too
};

// -log softmax(logits)[target] for logits [.., V] and targets [..] of i32 or i64. A target outside [0, V) that is not
// ignore_index is an rz::Error naming its value and position. Row losses are summed in double in row order: the same bits for
// any number of threads.
CrossEntropyResult cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options = {});

// cross_entropy(x weight^T) for x [.., D], weight [V, D] without keeping the logits: chunk_rows rows at a time, forward and again in
// backward (overwrite_logits is of no meaning here). chunk_rows 0: as many as fill about 8 MiB or a third of the
// weight's bytes, at least 32, and with 16-bit types at least an eighth of all.
CrossEntropyResult linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets,
                                        const CrossEntropyOptions& options = {}, int64_t chunk_rows = 0);

}  // namespace rz::ops
