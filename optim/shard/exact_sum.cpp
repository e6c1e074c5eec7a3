#include "optim/shard/exact_sum.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace rz::optim {

namespace {

constexpr int kFractionBits = 60;
constexpr int kLimbBits = 42;  // three limbs; each leaves 21 bits of an i64 for carries
constexpr int kLimbs = 3;
constexpr Int128 kLimbMask = (Int128{1} << kLimbBits) - 1;

constexpr int kFloatExponents = 128;  // float32 numbers are below 2^128

}  // namespace

bool FixedSum::add(double value_to_add) {
  if (!(std::abs(value_to_add) < 0x1p60)) return false;
  const double whole = std::trunc(value_to_add);
  const double fraction = value_to_add - whole;  // exact
  value +=
      static_cast<Int128>(static_cast<int64_t>(whole)) * (Int128{1} << kFractionBits) + static_cast<Int128>(std::llrint(fraction * 0x1p60));
  return true;
}

double FixedSum::to_double() const { return std::ldexp(static_cast<double>(value), -kFractionBits); }

void all_reduce_exactly(comm::Communicator& comm, std::span<Int128> values, std::string_view name) {
  std::vector<int64_t> limbs;
  for (const Int128 v : values) {
    limbs.push_back(static_cast<int64_t>(v & kLimbMask));
    limbs.push_back(static_cast<int64_t>((v >> kLimbBits) & kLimbMask));
    limbs.push_back(static_cast<int64_t>(v >> (2 * kLimbBits)));  // with the sign
  }
  comm.all_reduce(limbs.data(), limbs.size(), DType::i64, comm::ReduceOp::sum, {.name = name}).wait();
  for (size_t i = 0; i < values.size(); ++i) {
    Int128 sum = 0;
    for (int limb = kLimbs; limb-- > 0;) sum = sum * (Int128{1} << kLimbBits) + limbs[i * kLimbs + static_cast<size_t>(limb)];
    values[i] = sum;
  }
}

GradientGrids::GradientGrids(const std::vector<nn::Parameter*>& parameters, int64_t micro_batches) : parameters_(parameters) {
  RZ_CONFIG_CHECK(micro_batches >= 1 && micro_batches <= int64_t{1} << 24,
                  "exact sums take 1 to {} micro-batches in a step, not {}; make them larger", int64_t{1} << 24, micro_batches);
  micro_batch_bits_ = std::bit_width(static_cast<uint64_t>(micro_batches - 1));
  for (size_t i = 0; i < parameters_.size(); ++i) index_[parameters_[i]] = i;
  exponents_.assign(parameters_.size(), kUnknownExponent);
  magnitudes_.assign(parameters_.size(), 0);
}

void GradientGrids::begin_attempt() { std::ranges::fill(magnitudes_, 0); }

GradientGrids::Verdict GradientGrids::agree(comm::Communicator& comm, int64_t step, bool loss_is_bad, bool may_skip) {
  magnitudes_.push_back(loss_is_bad ? 1 : 0);
  comm.all_reduce(magnitudes_.data(), magnitudes_.size(), DType::i32, comm::ReduceOp::max, {.name = "gradient magnitudes"}).wait();
  const bool bad_loss = magnitudes_.back() != 0;
  magnitudes_.pop_back();
  RZ_CHECK(!bad_loss, "step {}: the loss of a micro-batch is not finite", step);

  std::string unsummable;
  bool beyond = false;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (magnitudes_[p] == 0) continue;
    const int exponent = exponent_of_bits(magnitudes_[p]);
    if (exponent + micro_batch_bits_ >= kFloatExponents)
      unsummable += fmt::format("{}'{}' (largest magnitude {})", unsummable.empty() ? "" : ", ", parameters_[p]->name,
                                std::bit_cast<float>(magnitudes_[p]));
    beyond |= exponent > exponents_[p] + kGrowthBits;
  }
  if (!unsummable.empty()) {
    RZ_CHECK(may_skip, "step {}: gradients are not finite, or their sum may exceed float32: {}", step, unsummable);
    repeated_ = false;
    return Verdict::overflow;
  }
  if (!beyond) return Verdict::exact;
  RZ_CHECK(!repeated_,
           "step {} computed twice gave different gradients: exact sums need a forward that depends on the step and the samples alone", step);
  repeated_ = true;
  for (size_t p = 0; p < parameters_.size(); ++p)
    if (magnitudes_[p] != 0) exponents_[p] = std::max(exponents_[p], exponent_of_bits(magnitudes_[p]));
  return Verdict::repeat;
}

void GradientGrids::end_step() {
  repeated_ = false;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const int now = magnitudes_[p] == 0 ? kUnknownExponent : exponent_of_bits(magnitudes_[p]);
    exponents_[p] = std::max(now, std::max(exponents_[p] - 1, kUnknownExponent));
  }
}

std::map<std::string, int64_t> GradientGrids::state() const {
  std::map<std::string, int64_t> state;
  for (size_t p = 0; p < parameters_.size(); ++p) state["exact.exponent." + parameters_[p]->name] = exponents_[p];
  return state;
}

void GradientGrids::set_state(const std::map<std::string, int64_t>& state) {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const auto found = state.find("exact.exponent." + parameters_[p]->name);
    if (found != state.end()) exponents_[p] = static_cast<int>(std::clamp<int64_t>(found->second, kUnknownExponent, kFloatExponents));
  }
}

}  // namespace rz::optim
