// The fixed list of micro-batches of a global batch, and which rank computes which: what order-independent sums are sums over.
// The list depends on the batch and the micro-batch alone; who computes what is dealt round: rank r computes r, r+N, r+2N, ...
#pragma once

#include <algorithm>
#include <optional>

#include "optim/shard/flat_layout.h"

namespace rz::optim {

class MicroBatches {
 public:
  // Of `batch` samples, `micro_batch` each, the last perhaps smaller.
  MicroBatches(int64_t batch, int64_t micro_batch) : batch_(batch), micro_batch_(micro_batch) {
    RZ_CHECK(batch >= 1 && micro_batch >= 1, "a batch of {} samples in micro-batches of {}", batch, micro_batch);
  }

  int64_t count() const { return (batch_ + micro_batch_ - 1) / micro_batch_; }
  Range samples(int64_t index) const { return {index * micro_batch_, std::min(batch_, (index + 1) * micro_batch_)}; }
  // Micro-batches of the rank that has most.
  int64_t rounds(int ranks) const { return (count() + ranks - 1) / ranks; }
  // What `rank` computes in `round`; nothing when the list is at its end.
  std::optional<int64_t> at(int64_t round, int rank, int ranks) const {
    const int64_t index = round * ranks + rank;
    return index < count() ? std::optional(index) : std::nullopt;
  }

 private:
  int64_t batch_;
  int64_t micro_batch_;
};

}  // namespace rz::optim
