// Legend: B samples, T context.
#include "models/data/batch.h"

#include <algorithm>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/random.h"

namespace rz::models {
namespace {

// Windows of the tokens that start where start_of(b) says.
template <class StartOf>
TokenBatch cut_windows(const Tokens& tokens, int64_t count, int64_t context, StartOf start_of) {
  TokenBatch batch{Tensor::empty({count, context}, DType::i32, Category::input, "batch inputs"),
                   Tensor::empty({count, context}, DType::i32, Category::input, "batch targets")};
  if (dry_run()) return batch;
  auto* inputs_BT = batch.inputs.data<int32_t>();
  auto* targets_BT = batch.targets.data<int32_t>();
  std::vector<int32_t> window(static_cast<size_t>(context) + 1);
  for (int64_t b = 0; b < count; ++b) {
    tokens.copy_to(start_of(b), window);
    std::copy(window.begin(), window.end() - 1, inputs_BT + b * context);
    std::copy(window.begin() + 1, window.end(), targets_BT + b * context);
  }
  return batch;
}

}  // namespace

TokenBatch make_train_batch(const TokenDataset& dataset, uint64_t seed, int64_t step, int64_t first_sample, int64_t count,
                            int64_t context) {
  dataset.check_context(context, Split::train);
  RZ_CHECK(step >= 0 && first_sample >= 0 && count >= 0, "step {}, first sample {}, {} samples", step, first_sample, count);
  const Tokens& tokens = dataset.tokens(Split::train);
  // A window and the token after it: starts 0 ... n-T-1.
  const auto starts = static_cast<uint64_t>(tokens.size() - context);
  return cut_windows(tokens, count, context, [&](int64_t b) {
    const Random random(seed, "data", static_cast<uint64_t>(step), static_cast<uint64_t>(first_sample + b));
    return static_cast<int64_t>(random.below(0, starts));
  });
}

int64_t validation_windows(const TokenDataset& dataset, int64_t context) {
  dataset.check_context(context, Split::validation);
  return (dataset.tokens(Split::validation).size() - 1) / context;
}

TokenBatch make_validation_batch(const TokenDataset& dataset, int64_t first_window, int64_t count, int64_t context) {
  const int64_t windows = validation_windows(dataset, context);
  RZ_CHECK(first_window >= 0 && count >= 0 && first_window <= windows && count <= windows - first_window,
           "windows [{}, {} + {}) asked of {}", first_window, first_window, count, windows);
  return cut_windows(dataset.tokens(Split::validation), count, context, [&](int64_t b) { return (first_window + b) * context; });
}

SampleRange sample_range(int64_t samples, int rank, int size) {
  RZ_CHECK(samples >= 0 && size >= 1 && rank >= 0 && rank < size, "{} samples for rank {} of {}", samples, rank, size);
  const int64_t each = samples / size;
  const int64_t extra = samples % size;  // the first `extra` ranks take one more
  const int64_t begin = each * rank + std::min<int64_t>(rank, extra);
  return {begin, begin + each + (rank < extra ? 1 : 0)};
}

}  // namespace rz::models
