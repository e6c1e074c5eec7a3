#include "optim/shard/sharded_model.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/autograd/node.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/trace.h"
#include "runtime/kernels/backend.h"

namespace rz::optim {

namespace {
// Of the full weights, or the full gradients, of a bucket.
int64_t gathered_bytes(const ShardedUnit& unit) {
  return unit.layout().padded_elements() * static_cast<int64_t>(size_bytes(unit.weight_view().dtype()));
}
}  // namespace

ShardedModel::ShardedModel(nn::Module& model, comm::Communicator& comm, const ShardingOptions& options)
    : model_(model), comm_(comm), groups_(comm, options.group_size), options_(options), slowdown_(options.experiment.slow_factor) {
  RZ_CHECK(options.accumulation.micro_batches >= 1, "{} micro-batches", options.accumulation.micro_batches);
  if (!options_.overlap) options_.prefetch = 0;
  RZ_CHECK(options.prefetch >= 0 && options.units_in_reduction >= 1, "prefetch {} and {} units in reduction", options.prefetch,
           options.units_in_reduction);
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
  const auto is_late = [&](const auto& unit) { return unit->name() == options_.experiment.late_bucket; };
  if (!options_.experiment.late_bucket.empty() && std::ranges::none_of(units_, is_late)) {
    std::vector<std::string> names;
    for (const auto& unit : units_) names.push_back(unit->name());
    throw ConfigError(
        fmt::format("there is no bucket '{}' to be late; valid: {}", options_.experiment.late_bucket, fmt::join(names, ", ")));
  }
}

ShardedModel::~ShardedModel() {
  model_.visit([](nn::Module& m) { m.set_unit_observer(nullptr); });
}

void ShardedModel::map_units() {
  const auto bucket_of = [this](const nn::Parameter& p) {
    return places_[static_cast<size_t>(autograd::find_meta(p.value)->leaf_index)].unit;
  };
  model_.visit([&](nn::Module& layer) {
    if (!layer.announces_uses()) return;
    std::set<size_t> buckets;
    for (const nn::Parameter* p : layer.own_parameters()) buckets.insert(bucket_of(*p));
    layer_buckets_[&layer].assign(buckets.begin(), buckets.end());
    layer.set_unit_observer(this);
  });
  gather_follows_.assign(units_.size(), 0);
  std::map<size_t, UnitSpan*> last_user;
  int64_t largest_bytes = 0;
  for (const auto& unit : units_) largest_bytes = std::max(largest_bytes, gathered_bytes(*unit));
  for (const nn::Unit& unit : model_.units()) {
    unit.module->set_unit_observer(this);
    std::set<size_t> buckets, needed_first;
    unit.module->visit([&](nn::Module& m) {
      for (const nn::Parameter* p : m.own_parameters()) {
        buckets.insert(bucket_of(*p));
        if (options_.policy.parameters || !m.announces_uses()) needed_first.insert(bucket_of(*p));
      }
    });
    UnitSpan& span = spans_[unit.module];
    span.name = unit.name;
    span.index = static_cast<int64_t>(order_.size());
    order_.push_back(&span);
    int64_t unit_bytes = 0;
    for (const size_t b : buckets) unit_bytes += gathered_bytes(*units_[b]);
    largest_bytes = std::max(largest_bytes, unit_bytes);
    span.buckets.assign(buckets.begin(), buckets.end());
    span.needed_first.assign(needed_first.begin(), needed_first.end());
    if (!buckets.empty()) gather_follows_[*buckets.begin()] = 1;
    for (size_t b : buckets) last_user[b] = &span;
  }
  backward_at_ = std::ssize(order_);
  reduction_window_bytes_ = options_.units_in_reduction * largest_bytes;
  for (auto& [bucket, span] : last_user) span->last_used_here.push_back(bucket);
  // Backward ends with the first unit: nothing is gathered after that.
  for (size_t b = 0; b < units_.size(); ++b) {
    if (units_[b]->outermost() || !units_[b]->trainable()) continue;
    gather_follows_[b] = 0;
    break;
  }
}

void ShardedModel::Slowdown::begin() { since_ns_ = factor_ > 1 ? steady_now_ns() : 0; }

void ShardedModel::Slowdown::end() {
  if (since_ns_ == 0) return;
  const double extra_ns = (factor_ - 1) * static_cast<double>(steady_now_ns() - since_ns_);
  since_ns_ = 0;
  std::this_thread::sleep_for(std::chrono::nanoseconds(static_cast<int64_t>(extra_ns)));
}

void ShardedModel::begin_step() {
  micro_batch_ = 0;
  if (exact_) exact_->begin_attempt();
  for (auto& unit : units_)
    if (unit->outermost()) unit->start_gather();
  prefetch(-1, 1);
  for (auto& unit : units_)
    if (unit->outermost()) unit->gather();
}

void ShardedModel::begin_micro_batch(int64_t index) {
  RZ_CHECK(index >= 0 && index < options_.accumulation.micro_batches, "micro-batch {} of {}", index, options_.accumulation.micro_batches);
  micro_batch_ = index;
  if (index > 0) prefetch(-1, 1);
}

void ShardedModel::gather_for(const UnitSpan& span, int direction) {
  if (span.buckets.empty()) return;
  for (size_t b : direction > 0 ? span.needed_first : span.buckets) units_[b]->gather();
  prefetch(span.index, direction);
}

void ShardedModel::prefetch(int64_t from, int direction) {
  if (!options_.policy.parameters) return;
  int64_t held = 0;
  for (const auto& unit : units_)
    if (!unit->outermost() && !unit->sharded()) held += gathered_bytes(*unit);
  const std::vector<size_t> none;
  const auto is_unit = [this](int64_t index) { return index >= 0 && index < std::ssize(order_); };
  const std::vector<size_t>* before = is_unit(from) ? &order_[static_cast<size_t>(from)]->buckets : &none;
  int left = options_.prefetch;
  // A forward that is computed again stops where backward has been: nobody needs the weights of what follows any more.
  const auto is_done = [&](int64_t index) { return direction > 0 && index >= backward_at_; };
  for (int64_t next = from + direction; left > 0 && is_unit(next) && !is_done(next); next += direction) {
    const std::vector<size_t>& buckets = order_[static_cast<size_t>(next)]->buckets;
    // A unit whose weights came with the one before is not ahead of it.
    if (buckets != *before) --left;
    before = &buckets;
    for (const size_t b : buckets) {
      ShardedUnit& unit = *units_[b];
      if (!unit.sharded()) continue;
      held += gathered_bytes(unit);
      if (options_.prefetch_bytes > 0 && held > options_.prefetch_bytes) return;
      unit.start_gather();
    }
  }
}

Tensor ShardedModel::run(nn::Module& unit, std::vector<Tensor> inputs, const nn::UnitForward& forward) {
  using trace::Activity;
  const UnitSpan& span = spans_.at(&unit);
  const bool records = autograd::grad_enabled();
  // Boundaries in the graph: backward meets `leave` just before the unit's own nodes, and `enter` just after them.
  if (records && !inputs.empty() && autograd::needs_grad({inputs[0]})) {
    Tensor bounded = inputs[0].view_alias();
    inputs[0] = autograd::record("unit end", bounded, {inputs[0]}, [this](const Tensor& grad, autograd::InputGradients& in) {
      slowdown_.end();
      slowdown_.begin();
      if (trace::Recorder* recorder = trace::current()) recorder->set({Activity::backward, trace::kNoName});
      in.add(0, grad);
    });
  }
  Tensor output;
  {
    gather_for(span, 1);
    // Units run in backward too, where their forward is computed again: that is backward's time.
    const bool again = RankContext::current()->memory().phase() == Phase::backward;
    const trace::Scope scope(again ? Activity::backward : Activity::forward, span.name);
    const UnitSpan* const outer = std::exchange(in_forward_, again ? nullptr : &span);
    slowdown_.begin();
    output = forward(inputs);
    slowdown_.end();
    in_forward_ = outer;
  }
  if (options_.policy.parameters) {
    for (size_t b : span.last_used_here) units_[b]->release();
  }
  if (!records || !autograd::needs_grad({output})) return output;
  // The way back begins at the last unit: its weights come again while the head and the loss are computed.
  if (span.index + 1 == std::ssize(order_)) prefetch(std::ssize(order_), -1);
  Tensor bounded = output.view_alias();
  return autograd::record("unit boundary", bounded, {output}, [this, &span](const Tensor& grad, autograd::InputGradients& in) {
    slowdown_.end();
    backward_at_ = span.index;
    gather_for(span, -1);
    if (reduces_now()) launch_ready_reductions(false);
    if (trace::Recorder* recorder = trace::current()) recorder->set({Activity::backward, recorder->intern(span.name)});
    slowdown_.begin();
    in.add(0, grad);
  });
}

void ShardedModel::uses(const nn::Module& layer) {
  if (in_forward_ == nullptr) return;
  slowdown_.end();
  if (!options_.policy.parameters)
    for (const size_t b : layer_buckets_.at(&layer)) units_[b]->gather();
  slowdown_.begin();
  // In every stage: what was computed between two of these is the same work everywhere.
  if (trace::Recorder* recorder = trace::current()) recorder->mark();
}

autograd::GradientTarget ShardedModel::target(autograd::AutogradMeta& leaf) {
  RZ_CHECK(leaf.leaf_index >= 0, "a leaf that is no parameter of the model wants a gradient");
  const Place place = places_[static_cast<size_t>(leaf.leaf_index)];
  return units_[place.unit]->gradient_target(place.entry);
}

void ShardedModel::ready(autograd::AutogradMeta& leaf) {
  const Place place = places_[static_cast<size_t>(leaf.leaf_index)];
  ShardedUnit& unit = *units_[place.unit];
  if (trace::Recorder* recorder = trace::current()) recorder->ready(recorder->intern(unit.layout().entries()[place.entry].parameter->name));
  if (!unit.entry_ready(place.entry)) return;
  if (trace::Recorder* recorder = trace::current()) recorder->ready(recorder->intern(unit.name()), trace::Event::Kind::bucket_ready);
  if (!unit.outermost()) unit.release();
  unit.fold(counts_);
  // Where backward is about to gather the next unit's weights, that goes first: see the boundary in run().
  if (reduces_now() && !(options_.policy.parameters && gather_follows_[place.unit] != 0)) launch_ready_reductions(false);
}

void ShardedModel::launch_ready_reductions(bool all) {
  while (reduce_cursor_ < reduce_order_.size()) {
    ShardedUnit& unit = *units_[reduce_order_[reduce_cursor_]];
    if (!all && (!unit.all_ready() || unit.name() == options_.experiment.late_bucket)) return;
    unit.start_reduce();
    ++reduce_cursor_;
    reducing_bytes_ += gathered_bytes(unit);
    // Transient buffers: the oldest are waited for here, at a place that does not depend on timing.
    const int64_t window = !options_.overlap               ? 0
                           : unit.reduction_is_transient() ? reduction_window_bytes_
                                                           : std::numeric_limits<int64_t>::max();
    while (reducing_bytes_ > window) finish_oldest_reduction();
  }
}

void ShardedModel::finish_oldest_reduction() {
  ShardedUnit& unit = *units_[reduce_order_[finished_cursor_++]];
  unit.finish_reduce();
  reducing_bytes_ -= gathered_bytes(unit);
}

void ShardedModel::backward(const Tensor& loss, double scale, bool counts) {
  RZ_CHECK(loss.defined() || (exact_ && !options_.policy.parameters), "a micro-batch without a loss");
  RZ_CHECK(counts || exact_, "a micro-batch that does not count, outside exact mode");
  counts_ = counts;
  reduce_cursor_ = 0;
  finished_cursor_ = 0;
  if (loss.defined()) {
    PhaseScope phase(Phase::backward);
    const trace::Scope activity(trace::Activity::backward);
    autograd::BackwardOptions backward_options;
    backward_options.sink = this;
    // The loss is scaled where backward starts: no gradient is ever smaller than its scaled value.
    if (scale != 1) {
      CategoryScope category(Category::activation_gradient);
      backward_options.grad = Tensor::full(loss.shape(), scale, loss.dtype(), "loss scale");
    }
    slowdown_.begin();
    autograd::backward(loss, backward_options);
    slowdown_.end();
    backward_at_ = std::ssize(order_);
  }
  {
    PhaseScope phase(Phase::reduce);
    for (auto& unit : units_) unit->fold(counts_);  // those that not all of their parameters' gradients reached
    if (reduces_now()) {
      launch_ready_reductions(true);
      while (finished_cursor_ < reduce_order_.size()) finish_oldest_reduction();
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

void ShardedModel::publish(ShardedUnit& unit) {
  PhaseScope phase(Phase::publish);
  unit.start_publish();
  if (!options_.overlap) unit.finish_publish();
}

void ShardedModel::settle() {
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
