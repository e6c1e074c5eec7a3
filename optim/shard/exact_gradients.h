// The gradients of one bucket as integers, in exact mode: micro-batches, in float32 or 16 bits, are added to a buffer of 64-bit sums,
// which is reduced over the ranks in place of the gradients and becomes float32 once.
//
// Memory, for a bucket of F padded elements of which this rank updates U (bytes; the gradients that micro-batches write to are a
// transient buffer of their owner's):
//   sums        8 F   persistent (gradient) where gradients are not sharded, else from the first addition to the end of the
//                     reduction (communication)
//   own sums    8 U   (gradient) only where every micro-batch is reduced and there are several
// One thread per rank.
#pragma once

#include <memory>
#include <vector>

#include "optim/shard/exact_sum.h"
#include "optim/shard/flat_layout.h"
#include "runtime/core/tensor.h"

namespace rz::optim {

class ExactGradients {
 public:
  struct Memory {
    bool transient = false;  // sums exist only until they are reduced
    bool apart = false;      // reduced sums of earlier micro-batches are kept beside them
  };
  // `layout` and `grids` must outlive it.
  ExactGradients(const FlatLayout& layout, GradientGrids& grids, Range update_range, Memory memory, const std::string& name);

  // Adds a micro-batch's gradients (f32, bf16 or f16), in the layout; entries without a contribution count as zero.
  void add(const std::shared_ptr<Storage>& gradients, DType dtype, const std::vector<char>& contributed);
  // The sums since the last reduction, zeros if there are none; the reduction's result belongs in their update range.
  int64_t* sums_to_reduce();
  // After the reduction: its result, added to those of earlier micro-batches of the step where `accumulate`, goes to `out` as
  // float32, in the update range; padding is not touched. Frees transient sums.
  void finish_reduce(bool accumulate, Tensor& out);

 private:
  void zero_all();

  const FlatLayout& layout_;
  GradientGrids& grids_;
  Range update_range_;
  Memory memory_;
  std::vector<size_t> parameters_;  // of grids_, by entry
  std::shared_ptr<Storage> sums_;   // i64
  Tensor own_sums_;                 // i64, the update range
  bool have_sums_ = false;          // of a micro-batch not yet reduced
};

}  // namespace rz::optim
