#include "optim/shard/sharded_optimizer.h"

#include <algorithm>
#include <cstring>

#include "runtime/kernels/backend.h"

namespace rz::optim {

namespace {

Tensor zero_state(int64_t elements, const std::string& owner) {
  Tensor t = Tensor::empty({elements}, DType::f32, Category::optimizer_state, owner);
  if (!dry_run()) std::memset(t.raw_data(), 0, t.size_bytes());
  return t;
}

// Padding belongs to the run before it: it is zero, and stays zero under every rule.
template <class Runs>
Runs make_runs(const ShardedUnit& unit, bool decay_all) {
  Runs runs;
  const Range update = unit.update_range();
  int64_t begin = update.begin;
  const auto& entries = unit.layout().entries();
  for (size_t e = 0; e < entries.size(); ++e) {
    const int64_t end = e + 1 < entries.size() ? entries[e + 1].offset : unit.layout().padded_elements();
    const Range part = intersect({begin, end}, update);
    const bool decay = decay_all || entries[e].parameter->decay;
    if (part.length() > 0) {
      if (!runs.empty() && runs.back().decay == decay) runs.back().range.end = part.end;
      else runs.push_back({part, decay});
    }
    begin = std::max(begin, end);
  }
  return runs;
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(ShardedModel& model, std::unique_ptr<Optimizer> rule, bool decay_all, double ema_decay)
    : model_(model), rule_(std::move(rule)), ema_decay_(ema_decay) {
  RZ_CONFIG_CHECK(ema_decay >= 0 && ema_decay < 1, "the decay of the weight average must be in [0, 1), not {}", ema_decay);
  for (const auto& unit : model.units()) {
    if (!unit->trainable()) continue;
    UnitState s;
    s.unit = unit.get();
    const int64_t elements = unit->update_range().length();
    for (const std::string& name : rule_->state_names()) s.state.push_back(zero_state(elements, unit->name() + " " + name));
    if (has_average()) {
      s.average = zero_state(elements, unit->name() + " average");
      backend(s.average.device()).elementwise->copy(unit->weight_view(), s.average);
    }
    s.runs = make_runs<std::vector<UnitState::Run>>(*unit, decay_all);
    units_.push_back(std::move(s));
  }
}

void ShardedOptimizer::update(int64_t step, double learning_rate, double gradient_scale) {
  PhaseScope phase(Phase::optimizer);
  for (UnitState& s : units_) {
    const int64_t origin = s.unit->update_range().begin;
    for (const auto& run : s.runs) {
      const int64_t begin = run.range.begin - origin;
      const int64_t end = run.range.end - origin;
      Tensor weight = s.unit->weight_view().view_slice(0, begin, end);
      const Tensor gradient = s.unit->gradient_view().view_slice(0, begin, end);
      std::vector<Tensor> state;
      for (const Tensor& t : s.state) state.push_back(t.view_slice(0, begin, end));
      rule_->update({step, learning_rate, gradient_scale, run.decay}, weight, gradient, state);
    }
    if (s.average.defined()) backend(s.average.device()).optimizer->ema(static_cast<float>(ema_decay_), s.average, s.unit->weight_view());
  }
}

void ShardedOptimizer::swap_average() {
  RZ_CHECK(has_average(), "there is no weight average to swap in");
  for (UnitState& s : units_) {
    Tensor weights = s.unit->weight_view();
    if (!dry_run()) std::swap_ranges(weights.data<float>(), weights.data<float>() + weights.numel(), s.average.data<float>());
    weights.bump_version();
  }
  model_.publish();
}

std::vector<StateSlice> ShardedOptimizer::slices(bool for_saving) const {
  std::vector<StateSlice> out;
  const auto add = [&out](const ShardedUnit& unit, const std::string& prefix, Range range, float* flat) {
    unit.for_each_part(range, flat, [&](const FlatEntry& entry, Range part, float* data) {
      out.push_back({prefix + entry.parameter->name, entry.parameter->shape(), part.begin, part.end, data});
    });
  };
  for (const auto& unit : model_.units()) {
    if (for_saving) add(*unit, "model.", unit->shard(), unit->shard_weights());
    else add(*unit, "model.", unit->kept_range(), unit->kept_weights());
  }
  const auto names = rule_->state_names();
  for (const UnitState& s : units_) {
    const Range update = s.unit->update_range();
    const Range range = for_saving ? s.unit->shard() : update;
    for (size_t i = 0; i <= s.state.size(); ++i) {
      const bool is_average = i == s.state.size();
      if (is_average && !has_average()) continue;
      const Tensor& t = is_average ? s.average : s.state[i];
      add(*s.unit, is_average ? "average." : "optimizer." + names[i] + ".", range, t.data<float>() + (range.begin - update.begin));
    }
  }
  return out;
}

std::vector<StateSlice> ShardedOptimizer::slices_to_save() const { return slices(true); }
std::vector<StateSlice> ShardedOptimizer::slices_to_load() const { return slices(false); }

}  // namespace rz::optim
