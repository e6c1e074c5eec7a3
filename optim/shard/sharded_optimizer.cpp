#include "optim/shard/sharded_optimizer.h"

#include <algorithm>
#include <cstring>

#include "runtime/core/trace.h"
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
      if (!runs.empty() && runs.back().decay == decay)
        runs.back().range.end = part.end;
      else
        runs.push_back({part, decay});
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
    if (model.options().precision.mixed()) {
      s.master = zero_state(elements, unit->name() + " master weights");
      unit->write_initial_values(model.options().seed, unit->update_range(), s.master);
    }
    if (has_average()) {
      s.average = zero_state(elements, unit->name() + " average");
      backend(s.average.device()).elementwise->copy(s.weights(), s.average);
    }
    s.runs = make_runs<std::vector<UnitState::Run>>(*unit, decay_all);
    units_.push_back(std::move(s));
  }
}

void ShardedOptimizer::update(int64_t step, double learning_rate, double gradient_scale) {
  PhaseScope phase(Phase::optimizer);
  for (UnitState& s : units_) {
    const trace::Scope activity(trace::Activity::optimizer, s.unit->name(), s.unit->update_range().length());
    const int64_t origin = s.unit->update_range().begin;
    s.unit->finish_publish();
    for (const auto& run : s.runs) {
      const int64_t begin = run.range.begin - origin;
      const int64_t end = run.range.end - origin;
      Tensor weight = s.weights().view_slice(0, begin, end);
      const Tensor rounded = s.master.defined() ? s.unit->weight_view().view_slice(0, begin, end) : Tensor();
      const Tensor gradient = s.unit->gradient_view().view_slice(0, begin, end);
      std::vector<Tensor> state;
      for (const Tensor& t : s.state) state.push_back(t.view_slice(0, begin, end));
      rule_->update({step, learning_rate, gradient_scale, run.decay, rounded}, weight, gradient, state);
    }
    if (s.average.defined()) backend(s.average.device()).optimizer->ema(static_cast<float>(ema_decay_), s.average, s.weights());
    model_.publish(*s.unit);
  }
}

void ShardedOptimizer::UnitState::round_weights() const {
  if (!master.defined()) return;
  Tensor weights = unit->weight_view();
  backend(weights.device()).elementwise->copy(master, weights);
}

void ShardedOptimizer::swap_average() {
  RZ_CHECK(has_average(), "there is no weight average to swap in");
  for (UnitState& s : units_) {
    s.unit->finish_publish();
    Tensor weights = s.weights();
    if (!dry_run()) std::swap_ranges(weights.data<float>(), weights.data<float>() + weights.numel(), s.average.data<float>());
    weights.bump_version();
    s.round_weights();
    model_.publish(*s.unit);
  }
}

// `flat` holds `range` of the unit's flat buffer.
void ShardedOptimizer::add_slices(std::vector<StateSlice>& out, const ShardedUnit& unit, const std::string& prefix, Range range,
                                  const Tensor& flat) const {
  Tensor staged;
  if (flat.dtype() != DType::f32) {
    staged = Tensor::empty(flat.shape(), DType::f32, Category::workspace, unit.name() + " weights for a checkpoint");
    backend(flat.device()).elementwise->copy(flat, staged);
  }
  float* data = (staged.defined() ? staged : flat).data<float>();
  unit.for_each_part(range, [&](const FlatEntry& entry, Range part, int64_t at) {
    out.push_back({prefix + entry.parameter->name, entry.parameter->shape(), part.begin, part.end, data + at, staged,
                   staged.defined() ? flat : Tensor()});
  });
}

std::vector<StateSlice> ShardedOptimizer::slices(bool for_saving) const {
  std::vector<StateSlice> out;
  // The part `range` of what is kept over `kept`.
  const auto add = [&](const ShardedUnit& unit, const std::string& prefix, Range kept, const Tensor& flat) {
    const Range range = for_saving ? unit.shard() : kept;
    add_slices(out, unit, prefix, range, flat.view_slice(0, range.begin - kept.begin, range.end - kept.begin));
  };
  const bool mixed = model_.options().precision.mixed();
  for (const auto& unit : model_.units()) {
    if (for_saving && !unit->speaks_for_shard()) continue;
    if (!mixed || !unit->trainable()) add(*unit, "model.", unit->kept_range(), unit->kept_weights());
  }
  const auto names = rule_->state_names();
  for (const UnitState& s : units_) {
    if (for_saving && !s.unit->speaks_for_shard()) continue;
    const Range update = s.unit->update_range();
    if (mixed) add(*s.unit, "model.", update, s.master);
    for (size_t i = 0; i < s.state.size(); ++i) add(*s.unit, "optimizer." + names[i] + ".", update, s.state[i]);
    if (has_average()) add(*s.unit, "average.", update, s.average);
  }
  return out;
}

std::vector<StateSlice> ShardedOptimizer::slices_to_save() const { return slices(true); }
std::vector<StateSlice> ShardedOptimizer::slices_to_load() const { return slices(false); }

void ShardedOptimizer::finish_load(const std::vector<StateSlice>& slices) {
  if (!model_.options().precision.mixed()) return;
  for (const UnitState& s : units_) s.round_weights();
  const Tensor* last = nullptr;  // the slices of a unit share one copy and follow one another
  for (const StateSlice& slice : slices) {
    if (!slice.staged.defined() || (last != nullptr && slice.staged.same(*last))) continue;
    last = &slice.staged;
    Tensor weights = slice.original;
    backend(weights.device()).elementwise->copy(slice.staged, weights);
  }
  for (const UnitState& s : units_) model_.publish(*s.unit);
}

}  // namespace rz::optim
