#include "optim/shard/sharded_model.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>

#include "comm/traffic.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"

namespace rz::optim {

ShardedModel::ShardedModel(nn::Module& model, comm::Communicator& comm, const ShardingOptions& options)
    : model_(model), comm_(comm), options_(options) {
  RZ_CHECK(options.accumulation.micro_batches >= 1, "{} micro-batches", options.accumulation.micro_batches);
  RZ_CHECK(options.prefetch >= 0 && options.reductions_in_flight >= 1, "prefetch {} and {} reductions in flight", options.prefetch,
           options.reductions_in_flight);
  for (BucketPlan& plan : plan_buckets(model, options.bucket_bytes)) {
    const bool trainable = plan.trainable;
    units_.push_back(std::make_unique<ShardedUnit>(std::move(plan), options.policy, options.accumulation, options.order, comm));
    units_.back()->initialize(options.seed);
    const auto& entries = units_.back()->layout().entries();
    for (size_t e = 0; e < entries.size(); ++e) {
      Tensor& value = entries[e].parameter->value;
      autograd::set_requires_grad(value, trainable);
      autograd::meta_of(value).leaf_index = static_cast<int64_t>(places_.size());
      places_.push_back({units_.size() - 1, e});
    }
  }
  // Reverse registration, the outermost unit last: its gradients (the embedding's) come at the very end of backward.
  for (const bool outermost : {false, true})
    for (size_t u = units_.size(); u-- > 0;)
      if (units_[u]->trainable() && units_[u]->outermost() == outermost) reduce_order_.push_back(u);
  map_units();
}

ShardedModel::~ShardedModel() {
  for (const nn::Unit& unit : model_.units()) unit.module->set_unit_observer(nullptr);
}

void ShardedModel::map_units() {
  std::map<size_t, UnitSpan*> last_user;
  for (const nn::Unit& unit : model_.units()) {
    unit.module->set_unit_observer(this);
    std::set<size_t> buckets;
    for (const nn::Parameter* p : unit.module->parameters())
      buckets.insert(places_[static_cast<size_t>(autograd::find_meta(p->value)->leaf_index)].unit);
    UnitSpan& span = spans_[unit.module];
    span.buckets.assign(buckets.begin(), buckets.end());
    for (size_t b : buckets) last_user[b] = &span;
  }
  for (auto& [bucket, span] : last_user) span->last_used_here.push_back(bucket);
}

void ShardedModel::begin_step() {
  micro_batch_ = 0;
  for (auto& unit : units_)
    if (unit->outermost()) unit->gather();
}

void ShardedModel::begin_micro_batch(int64_t index) {
  RZ_CHECK(index >= 0 && index < options_.accumulation.micro_batches, "micro-batch {} of {}", index, options_.accumulation.micro_batches);
  micro_batch_ = index;
}

void ShardedModel::gather_for(const UnitSpan& span, bool forward) {
  if (!options_.policy.parameters || span.buckets.empty()) return;
  for (size_t b : span.buckets) units_[b]->gather();
  // Ahead of use: the next buckets in the direction of travel.
  for (int ahead = 1; ahead <= options_.prefetch; ++ahead) {
    const auto next = forward ? static_cast<int64_t>(span.buckets.back()) + ahead : static_cast<int64_t>(span.buckets.front()) - ahead;
    if (next < 0 || next >= static_cast<int64_t>(units_.size())) break;
    ShardedUnit& unit = *units_[static_cast<size_t>(next)];
    if (!unit.outermost()) unit.start_gather();
  }
}

Tensor ShardedModel::run(nn::Module& unit, std::vector<Tensor> inputs, const nn::UnitForward& forward) {
  const UnitSpan& span = spans_.at(&unit);
  gather_for(span, true);
  Tensor output = forward(inputs);
  if (!options_.policy.parameters) return output;
  for (size_t b : span.last_used_here) units_[b]->release();
  if (!autograd::needs_grad({output})) return output;
  // A boundary on the unit's output runs in backward just before the unit's own nodes.
  Tensor bounded = output.view_alias();
  return autograd::record("unit boundary", bounded, {output}, [this, &span](const Tensor& grad, autograd::InputGradients& in) {
    gather_for(span, false);
    in.add(0, grad);
  });
}

autograd::GradientTarget ShardedModel::target(autograd::AutogradMeta& leaf) {
  RZ_CHECK(leaf.leaf_index >= 0, "a leaf that is no parameter of the model wants a gradient");
  const Place place = places_[static_cast<size_t>(leaf.leaf_index)];
  return units_[place.unit]->gradient_target(place.entry);
}

void ShardedModel::ready(autograd::AutogradMeta& leaf) {
  const Place place = places_[static_cast<size_t>(leaf.leaf_index)];
  ShardedUnit& unit = *units_[place.unit];
  if (!unit.entry_ready(place.entry)) return;
  if (!unit.outermost()) unit.release();
  if (reduces_now()) launch_ready_reductions(false);
}

void ShardedModel::launch_ready_reductions(bool all) {
  while (reduce_cursor_ < reduce_order_.size()) {
    ShardedUnit& unit = *units_[reduce_order_[reduce_cursor_]];
    if (!all && !unit.all_ready()) return;
    unit.start_reduce();
    ++reduce_cursor_;
    // Transient buffers: the oldest is waited for here, at a place that does not depend on timing.
    while (options_.policy.gradients && reduce_cursor_ - finished_cursor_ > static_cast<size_t>(options_.reductions_in_flight))
      units_[reduce_order_[finished_cursor_++]]->finish_reduce();
  }
}

void ShardedModel::backward(const Tensor& loss) {
  reduce_cursor_ = 0;
  finished_cursor_ = 0;
  {
    PhaseScope phase(Phase::backward);
    autograd::BackwardOptions backward_options;
    backward_options.sink = this;
    autograd::backward(loss, backward_options);
  }
  {
    PhaseScope phase(Phase::reduce);
    if (reduces_now()) {
      launch_ready_reductions(true);
      while (finished_cursor_ < reduce_order_.size()) units_[reduce_order_[finished_cursor_++]]->finish_reduce();
    }
  }
  for (auto& unit : units_) {
    unit->end_backward(!last_micro_batch());
    if (!unit->outermost() || last_micro_batch()) unit->release();
  }
}

void ShardedModel::end_forward_only() {
  for (auto& unit : units_) unit->release();
}

double ShardedModel::shard_sum_of_squares() const {
  double sum = 0;
  for (size_t u : reduce_order_) {
    const Tensor shard = units_[u]->gradient_shard();
    sum += backend(shard.device()).optimizer->sum_of_squares(shard);
  }
  return sum;
}

void ShardedModel::reduce_scalars(std::span<double> values) {
  comm_.all_reduce(values.data(), values.size(), DType::f64, comm::ReduceOp::sum, {.name = "scalars", .order = options_.order}).wait();
  scalar_bytes_sent_ += comm::traffic_of({comm::CollectiveKind::all_reduce, values.size(), DType::f64, options_.order, comm_.rank(), comm_.size(), 0,
                                          sizeof(double), comm_.scratch_bytes()})
                            .sent_bytes;
}

void ShardedModel::publish() {
  PhaseScope phase(Phase::publish);
  for (auto& unit : units_)
    if (unit->trainable()) unit->start_publish();
  for (auto& unit : units_) unit->finish_publish();
}

void ShardedModel::visit_weights(const std::function<void(const nn::Parameter&)>& f) {
  for (auto& unit : units_) {
    const bool was_gathered = unit->gathered();
    unit->gather();
    for (const FlatEntry& entry : unit->layout().entries()) f(*entry.parameter);
    if (!was_gathered) unit->release();
  }
}

uint64_t ShardedModel::weights_digest() {
  PhaseScope phase(Phase::save);
  std::map<std::string, uint64_t> by_name;
  visit_weights([&](const nn::Parameter& p) { by_name[p.name] = dry_run() ? 0 : XXH3_64bits(p.value.raw_data(), p.value.size_bytes()); });
  std::string all;
  for (const auto& [name, hash] : by_name) all += fmt::format("{} {:016x}\n", name, hash);
  return XXH3_64bits(all.data(), all.size());
}

void ShardedModel::check_replicas() {
  std::vector<uint64_t> digests(static_cast<size_t>(comm_.size()));
  const uint64_t own = weights_digest();
  comm_.all_gather(&own, digests.data(), digests.size(), DType::i64, {.name = "replica digests"}).wait();
  std::string odd;
  for (size_t r = 1; r < digests.size(); ++r)
    if (digests[r] != digests[0]) odd += fmt::format(" rank {} has {:016x}", r, digests[r]);
  RZ_CHECK(odd.empty(), "replicas differ: rank 0 has weights {:016x},{}", digests[0], odd);
}

int64_t ShardedModel::payload_elements() const {
  int64_t sum = 0;
  for (const auto& unit : units_) sum += unit->layout().payload_elements();
  return sum;
}

int64_t ShardedModel::padded_elements() const {
  int64_t sum = 0;
  for (const auto& unit : units_) sum += unit->layout().padded_elements();
  return sum;
}

}  // namespace rz::optim
