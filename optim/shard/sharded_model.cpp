#include "optim/shard/sharded_model.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/autograd/node.h"
#include "runtime/kernels/backend.h"

namespace rz::optim {

ShardedModel::ShardedModel(nn::Module& model, comm::Communicator& comm, const ShardingOptions& options)
    : model_(model), comm_(comm), groups_(comm, options.group_size), options_(options) {
  RZ_CHECK(options.accumulation.micro_batches >= 1, "{} micro-batches", options.accumulation.micro_batches);
  RZ_CHECK(options.prefetch >= 0 && options.reductions_in_flight >= 1, "prefetch {} and {} reductions in flight", options.prefetch,
           options.reductions_in_flight);
  options.precision.check();
  RZ_CONFIG_CHECK(options.exact_micro_batches == 0 || options.precision.reduce == DType::f32,
                  "exact sums travel as integers, not in {}; leave the type of the reduction f32", name(options.precision.reduce));
  model.set_dtype(options.precision.weights);
  if (options.exact_micro_batches > 0) exact_ = std::make_unique<GradientGrids>(model.parameters(), options.exact_micro_batches);
  for (BucketPlan& plan : plan_buckets(model, options.bucket_bytes)) {
    const bool trainable = plan.trainable;
    units_.push_back(std::make_unique<ShardedUnit>(std::move(plan), options.policy, options.precision, options.accumulation, options.order,
                                                   groups_, exact_.get()));
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
  if (exact_) exact_->begin_attempt();
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
  unit.fold(counts_);
  if (reduces_now()) launch_ready_reductions(false);
}

void ShardedModel::launch_ready_reductions(bool all) {
  while (reduce_cursor_ < reduce_order_.size()) {
    ShardedUnit& unit = *units_[reduce_order_[reduce_cursor_]];
    if (!all && !unit.all_ready()) return;
    unit.start_reduce();
    ++reduce_cursor_;
    // Transient buffers: the oldest is waited for here, at a place that does not depend on timing.
    while (unit.reduction_is_transient() && reduce_cursor_ - finished_cursor_ > static_cast<size_t>(options_.reductions_in_flight))
      units_[reduce_order_[finished_cursor_++]]->finish_reduce();
  }
}

void ShardedModel::backward(const Tensor& loss, double scale, bool counts) {
  RZ_CHECK(loss.defined() || (exact_ && !options_.policy.parameters), "a micro-batch without a loss");
  RZ_CHECK(counts || exact_, "a micro-batch that does not count, outside exact mode");
  counts_ = counts;
  reduce_cursor_ = 0;
  finished_cursor_ = 0;
  if (loss.defined()) {
    PhaseScope phase(Phase::backward);
    autograd::BackwardOptions backward_options;
    backward_options.sink = this;
    // The loss is scaled where backward starts: no gradient is ever smaller than its scaled value.
    if (scale != 1) {
      CategoryScope category(Category::activation_gradient);
      backward_options.grad = Tensor::full(loss.shape(), scale, loss.dtype(), "loss scale");
    }
    autograd::backward(loss, backward_options);
  }
  {
    PhaseScope phase(Phase::reduce);
    for (auto& unit : units_) unit->fold(counts_);  // those that not all of their parameters' gradients reached
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
  if (!groups_.first()) return sum;
  for (size_t u : reduce_order_) {
    const Tensor shard = units_[u]->gradient_shard();
    sum += backend(shard.device()).optimizer->sum_of_squares(shard);
  }
  return sum;
}

std::string ShardedModel::first_non_finite_gradient() const {
  for (size_t u : reduce_order_) {
    const ShardedUnit& unit = *units_[u];
    const auto values = unit.gradient_shard().to_vector<float>();
    std::string found;
    unit.for_each_part(unit.shard(), [&](const FlatEntry& entry, Range part, int64_t at) {
      for (int64_t i = 0; i < part.length() && found.empty(); ++i)
        if (const float v = values[static_cast<size_t>(at + i)]; !std::isfinite(v))
          found = fmt::format("'{}' of unit {}, element {} is {}", entry.parameter->name, unit.name(), part.begin + i, v);
    });
    if (!found.empty()) return found;
  }
  return {};
}

namespace {
// Fixed-point kernels read float32: 16-bit gradients are widened, unit by unit.
Tensor as_float32(const Tensor& shard) {
  if (shard.dtype() == DType::f32) return shard;
  Tensor wide = Tensor::empty(shard.shape(), DType::f32, Category::workspace, "gradient shard in float32");
  backend(shard.device()).elementwise->copy(shard, wide);
  return wide;
}
}  // namespace

double ShardedModel::ordered_sum_of_squares() {
  int32_t largest = 0;
  for (size_t u : reduce_order_) {
    const Tensor shard = as_float32(units_[u]->gradient_shard());
    largest = std::max(largest, backend(shard.device()).fixed_point->largest_magnitude(shard));
  }
  comm_.all_reduce(&largest, 1, DType::i32, comm::ReduceOp::max, {.name = "largest gradient"}).wait();
  const int bound = exponent_of_bits(largest);
  if (bound > 128) return std::numeric_limits<double>::quiet_NaN();
  std::array<Int128, 1> sum = {0};
  for (size_t u : reduce_order_) {
    if (!groups_.first()) break;
    const Tensor shard = as_float32(units_[u]->gradient_shard());
    sum[0] += backend(shard.device()).fixed_point->sum_of_squares(shard, bound);
  }
  all_reduce_exactly(comm_, sum, "squared norm");
  return std::ldexp(static_cast<double>(sum[0]), 2 * bound - kSquareBits);
}

double ShardedModel::exact_sum_of_squares(std::span<Int128> more) {
  std::vector<Int128> sums(exact_->size(), 0);
  for (size_t u : reduce_order_) {
    if (!groups_.first()) break;
    const ShardedUnit& unit = *units_[u];
    const Tensor shard = unit.gradient_shard();
    unit.for_each_part(unit.shard(), [&](const FlatEntry& entry, Range part, int64_t at) {
      const size_t p = exact_->index_of(*entry.parameter);
      sums[p] += backend(shard.device()).fixed_point->sum_of_squares(shard.view_slice(0, at, at + part.length()), exact_->sum_bound(p));
    });
  }
  const size_t parameters = sums.size();
  sums.insert(sums.end(), more.begin(), more.end());
  all_reduce_exactly(comm_, sums, "scalars");
  std::copy(sums.begin() + static_cast<std::ptrdiff_t>(parameters), sums.end(), more.begin());
  double total = 0;  // in the model's order of parameters, which no sharding changes
  for (size_t p = 0; p < parameters; ++p) total += std::ldexp(static_cast<double>(sums[p]), 2 * exact_->sum_bound(p) - kSquareBits);
  return total;
}

uint64_t ShardedModel::payload_bytes_sent() const {
  const comm::WireStats stats = comm_.wire_stats();
  uint64_t sum = 0;
  for (const auto& count : stats.payload) sum += count.sent_bytes;
  return sum;
}

void ShardedModel::reduce_scalars(std::span<double> values) {
  comm_.all_reduce(values.data(), values.size(), DType::f64, comm::ReduceOp::sum, {.name = "scalars", .order = options_.order}).wait();
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
