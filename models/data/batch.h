// Batches for next-token prediction.
//
// The training batch is keyed by (seed, step, global sample index), so what the job sees does not depend on how many ranks
// share it: a rank makes the samples sample_range() gives it, and all ranks together made the same batch.
// Pure functions; thread-safe.
#pragma once

#include <cstdint>

#include "models/data/token_dataset.h"
#include "runtime/core/tensor.h"

namespace rz::models {

// B sequences of T tokens; targets_BT[b, t] is the token that follows inputs_BT[b, t]. Both i32 in Category::input.
struct TokenBatch {
  Tensor inputs;   // [B, T]
  Tensor targets;  // [B, T]
};

// Samples [first_sample, first_sample + count) of the global batch of `step`: windows of `context` tokens of the training split that
// start at uniformly random places. `count` may be 0. ConfigError when the split is not longer than the context.
TokenBatch make_train_batch(const TokenDataset& dataset, uint64_t seed, int64_t step, int64_t first_sample, int64_t count, int64_t context);

// The validation split in consecutive windows, which share no target: window w predicts tokens w*T+1 ... w*T+T. A tail
// shorter than a window is left out.
int64_t validation_windows(const TokenDataset& dataset, int64_t context);
// Windows [first_window, first_window + count); they must exist.
TokenBatch make_validation_batch(const TokenDataset& dataset, int64_t first_window, int64_t count, int64_t context);

// Samples [begin, end) of one rank.
struct SampleRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};
// Deals `samples` out to `size` ranks in order; counts differ by at most one, the first ranks having more. A rank gets none when there
// are fewer samples than ranks.
SampleRange sample_range(int64_t samples, int rank, int size);

}  // namespace rz::models
