// Order-independent sums over ranks: the grids on which gradients are added as integers, agreed by all ranks, and sums of single
// numbers. Integer addition is exact, so the result depends on the addends alone: not on ranks, buckets, groups or algorithms.
//
// Vocabulary
//   grid       a parameter's gradient elements are counted in units of 2^grid.
//   exponent   of a parameter: all its micro-batches' gradient elements were below 2^exponent in magnitude.
//   growth     they may become 2^kGrowthBits times larger before the grid is too fine for 64 bits.
// A step's grids come from the exponents of the steps before it. When the step's own magnitudes, known to all ranks after its
// backward, turn out beyond a grid, every rank raises the exponent and computes the step again, to the same result as had it been
// known at once. An exponent rises at once and sinks by one a step.
// Invariant: exponents are functions of the global list of micro-batches, never of who computed what.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "comm/communicator.h"
#include "runtime/kernels/fixed_point.h"
#include "runtime/nn/module.h"

namespace rz::optim {

// A sum of doubles below 2^60 in magnitude, in units of 2^-60.
class FixedSum {
 public:
  // False, and nothing added, for a number that does not fit or is not finite.
  bool add(double value);
  double to_double() const;
  Int128 value = 0;
};

// values[i] = sum over the ranks; below 2^125 in magnitude, of at most 2^20 ranks. COLLECTIVE.
void all_reduce_exactly(comm::Communicator& comm, std::span<Int128> values, std::string_view name);

inline constexpr int kGrowthBits = 10;
inline constexpr int kUnknownExponent = -160;  // below float32's smallest number by more than the growth: any number is beyond it

class GradientGrids {
 public:
  // For sums over `micro_batches`, of all ranks together. `parameters` must outlive it, in the same order everywhere.
  GradientGrids(const std::vector<nn::Parameter*>& parameters, int64_t micro_batches);

  size_t index_of(const nn::Parameter& parameter) const { return index_.at(&parameter); }
  size_t size() const { return exponents_.size(); }

  int grid(size_t parameter) const { return exponents_[parameter] + kGrowthBits + micro_batch_bits_ - kSumBits; }
  // A gradient of this attempt had this largest magnitude, as the bits of a float32.
  void note_magnitude(size_t parameter, int32_t bits) { magnitudes_[parameter] = std::max(magnitudes_[parameter], bits); }

  // A new step or another attempt at it.
  void begin_attempt();
  enum class Verdict {
    exact,     // the sums are
    repeat,    // exponents were raised: compute the step again
    overflow,  // gradients are not finite, or their sum might not be: the step can only be skipped
  };
  // After the attempt's last gradient: the same verdict on every rank. rz::Error on every rank, naming parameters, for an overflow
  // unless it may be skipped; or when a rank says that its loss is bad; or when a repeated attempt goes beyond its grids again, so
  // that it computed something else. COLLECTIVE.
  Verdict agree(comm::Communicator& comm, int64_t step, bool loss_is_bad, bool may_skip = false);
  // After agree() found the sums exact: those of this step's gradients are at most 2^bound in magnitude.
  int sum_bound(size_t parameter) const { return exponent_of_bits(magnitudes_[parameter]) + micro_batch_bits_; }
  // Ends a step whose sums were exact: exponents for the next. One that overflowed tells nothing, and leaves them as they were.
  void end_step();

  // Training state: with it a continued run takes the same bits as one that was never stopped. Without, its first step is computed twice.
  std::map<std::string, int64_t> state() const;  // "exact.exponent.<parameter>"
  void set_state(const std::map<std::string, int64_t>& state);

 private:
  static constexpr int kSumBits = 62;  // of a sum's magnitude

  std::vector<nn::Parameter*> parameters_;
  std::unordered_map<const nn::Parameter*, size_t> index_;
  int micro_batch_bits_ = 0;  // ceil(log2(micro-batches))
  std::vector<int> exponents_;
  std::vector<int32_t> magnitudes_;
  bool repeated_ = false;
};

}  // namespace rz::optim
