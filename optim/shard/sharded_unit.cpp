#include "optim/shard/sharded_unit.h"

#include <algorithm>
#include <cstring>

#include "comm/error.h"
#include "runtime/kernels/backend.h"

namespace rz::optim {

namespace {
// Zero is all bits zero in every floating-point type.
void zero(std::byte* data, size_t bytes) {
  if (!dry_run()) std::memset(data, 0, bytes);
}
}  // namespace

ShardedUnit::ShardedUnit(BucketPlan plan, const ShardingPolicy& policy, const Precision& precision, const Accumulation& accumulation,
                         comm::Order order, ShardGroups& groups, GradientGrids* exact)
    : plan_(std::move(plan)),
      layout_(plan_.parameters, groups.inner().size()),
      policy_(policy),
      precision_(precision),
      widens_(precision.reduce != precision.weights && groups.inner().size() * groups.groups() > 1),
      accumulation_(accumulation),
      order_(order),
      groups_(groups),
      comm_(groups.inner()),
      shard_(layout_.shard(comm_.rank())),
      update_range_(policy.optimizer ? shard_ : layout_.whole()),
      contributed_(plan_.parameters.size(), 0) {
  const DType dtype = precision_.weights;
  const size_t full_bytes = padded() * size_bytes(dtype);
  const size_t shard_bytes = static_cast<size_t>(layout_.shard_elements()) * size_bytes(dtype);
  if (policy_.parameters) {
    weights_ = Storage::make_released(full_bytes, Category::communication, plan_.name + " gathered weights");
    weights_shard_ = Storage::make(shard_bytes, Category::parameter, plan_.name + " weight shard");
    zero(weights_shard_->data(), shard_bytes);
    weight_view_ = Tensor::over(weights_shard_, {shard_.length()}, dtype);
  } else {
    weights_ = Storage::make(full_bytes, Category::parameter, plan_.name + " weights");
    zero(weights_->data(), full_bytes);
    weight_view_ = Tensor::over(weights_, {update_range_.length()}, dtype, update_range_.begin);
    weights_state_ = WeightsState::gathered;
  }
  for (const FlatEntry& entry : layout_.entries()) entry.parameter->value.rebind_storage(weights_, entry.offset);
  if (!plan_.trainable) return;

  const bool apart = accumulation_.reduce_every && accumulation_.micro_batches > 1;
  if (exact != nullptr) {
    gradients_ = Storage::make_released(full_bytes, Category::communication, plan_.name + " gradients");
    accumulated_ = Tensor::empty({update_range_.length()}, DType::f32, Category::gradient, plan_.name + " reduced gradients");
    zero(accumulated_.raw_data(), accumulated_.size_bytes());  // its padding, for good
    gradient_view_ = accumulated_;
    exact_ = std::make_unique<ExactGradients>(layout_, *exact, update_range_, ExactGradients::Memory{.transient = policy_.gradients, .apart = apart}, plan_.name);
    return;
  }
  const bool transient = policy_.gradients;
  gradients_ = Storage::make_released(full_bytes, transient ? Category::communication : Category::gradient, plan_.name + " gradients");
  if (!transient) materialize_gradients();
  if (transient || apart) {
    accumulated_ = Tensor::empty({update_range_.length()}, dtype, Category::gradient, plan_.name + " reduced gradients");
    gradient_view_ = accumulated_;
  } else {
    gradient_view_ = Tensor::over(gradients_, {update_range_.length()}, dtype, update_range_.begin);
  }
}

ShardedUnit::~ShardedUnit() {
  for (const comm::Work* work : {&gather_work_, &reduce_work_}) {
    try {
      work->wait();
    } catch (const comm::CommError&) {
      // The job has failed, and its first error is on its way out; what matters here is that nothing uses the buffers any more.
    }
  }
}

std::byte* ShardedUnit::at(const std::shared_ptr<Storage>& storage, int64_t element) const {
  return storage->data() + static_cast<size_t>(element) * size_bytes(precision_.weights);
}

Tensor ShardedUnit::kept_weights() const {
  return Tensor::over(policy_.parameters ? weights_shard_ : weights_, {kept_range().length()}, precision_.weights);
}

void ShardedUnit::initialize(uint64_t seed) { write_initial_values(seed, kept_range(), kept_weights()); }

void ShardedUnit::write_initial_values(uint64_t seed, Range range, const Tensor& flat) const {
  constexpr int64_t kBlock = 16384;
  Tensor block;
  for_each_part(range, [&](const FlatEntry& entry, Range part, int64_t at) {
    if (flat.dtype() == DType::f32) return nn::initial_values(*entry.parameter, seed, part.begin, part.end, flat.data<float>() + at);
    if (!block.defined()) block = Tensor::empty({kBlock}, DType::f32, Category::workspace, "initial values");
    for (int64_t begin = part.begin; begin < part.end; begin += kBlock) {
      const int64_t count = std::min(kBlock, part.end - begin);
      nn::initial_values(*entry.parameter, seed, begin, begin + count, block.data<float>());
      const int64_t to = at + begin - part.begin;
      Tensor rounded = flat.view_slice(0, to, to + count);
      backend(flat.device()).elementwise->copy(block.view_slice(0, 0, count), rounded);
    }
  });
}

void ShardedUnit::start_gather() {
  if (weights_state_ != WeightsState::sharded) return;
  weights_->materialize();
  gather_work_ = comm_.all_gather(at(weights_shard_), at(weights_), padded(), precision_.weights, {.name = plan_.name});
  weights_state_ = WeightsState::gathering;
}

void ShardedUnit::gather() {
  start_gather();
  if (weights_state_ != WeightsState::gathering) return;
  gather_work_.wait();
  weights_state_ = WeightsState::gathered;
}

void ShardedUnit::release() {
  if (!policy_.parameters || weights_state_ == WeightsState::sharded) return;
  gather();  // a gather on its way must land before its buffer goes
  weights_->release();
  weights_state_ = WeightsState::sharded;
}

void ShardedUnit::zero_gradients(Range range) {
  zero(at(gradients_, range.begin), static_cast<size_t>(range.length()) * size_bytes(precision_.weights));
}

void ShardedUnit::materialize_gradients() {
  if (gradients_->is_materialized()) return;
  gradients_->materialize();
  for (const Range& gap : layout_.padding()) zero_gradients(gap);
}

autograd::GradientTarget ShardedUnit::gradient_target(size_t index) {
  RZ_CHECK(gradients_state_ != GradientsState::reducing, "a gradient of '{}' arrived after its unit was reduced",
           layout_.entries().at(index).parameter->name);
  materialize_gradients();
  gradients_state_ = GradientsState::accumulating;
  const FlatEntry& entry = layout_.entries()[index];
  const bool accumulate = contributed_[index] != 0;
  contributed_[index] = 1;
  return {Tensor::over(gradients_, entry.parameter->shape(), precision_.weights, entry.offset), accumulate};
}

bool ShardedUnit::entry_ready(size_t index) {
  RZ_CHECK(ready_ < layout_.entries().size(), "'{}' became ready twice", layout_.entries().at(index).parameter->name);
  return ++ready_ == layout_.entries().size();
}

void ShardedUnit::fold(bool counts) {
  if (!exact_ || gradients_state_ != GradientsState::accumulating) return;
  if (counts) exact_->add(gradients_, precision_.weights, contributed_);
  gradients_->release();
  std::ranges::fill(contributed_, 0);
  gradients_state_ = GradientsState::empty;
}

void ShardedUnit::start_reduce() {
  RZ_CHECK(gradients_state_ != GradientsState::reducing, "unit '{}' is being reduced already", plan_.name);
  const comm::CollectiveOptions options{.name = plan_.name, .order = order_};
  if (exact_) {
    RZ_CHECK(gradients_state_ == GradientsState::empty, "unit '{}' is reduced before its micro-batch was added", plan_.name);
    int64_t* sums = exact_->sums_to_reduce();
    reduce_work_ = groups_.reduce(sums, sums + shard_.begin, padded(), DType::i64, !policy_.optimizer, options);
    gradients_state_ = GradientsState::reducing;
    return;
  }
  materialize_gradients();
  for (size_t i = 0; i < contributed_.size(); ++i)
    if (!contributed_[i]) zero_gradients(layout_.entries()[i].range());
  const DType dtype = widens_ ? precision_.reduce : precision_.weights;
  std::byte* full = widens_ ? widen_gradients() : at(gradients_);
  // The first result lands in its place; later ones, and those of another type, beside it, to be added or converted.
  const bool direct = policy_.optimizer && accumulated_.defined() && !have_reduced_ && !widened_.defined();
  std::byte* own = direct ? accumulated_.raw_data() : full + static_cast<size_t>(shard_.begin) * size_bytes(dtype);
  reduce_work_ = groups_.reduce(full, own, padded(), dtype, !policy_.optimizer, options);
  gradients_state_ = GradientsState::reducing;
}

std::byte* ShardedUnit::widen_gradients() {
  widened_ = Tensor::empty({layout_.padded_elements()}, precision_.reduce, Category::communication, plan_.name + " gradients to reduce");
  const Tensor narrow = Tensor::over(gradients_, widened_.shape(), precision_.weights);
  backend(narrow.device()).elementwise->copy(narrow, widened_);
  if (policy_.gradients) gradients_->release();
  return widened_.raw_data();
}

void ShardedUnit::finish_reduce() {
  if (gradients_state_ != GradientsState::reducing) return;
  reduce_work_.wait();
  if (exact_) {
    exact_->finish_reduce(have_reduced_, accumulated_);
  } else if (widened_.defined()) {
    const Tensor result = widened_.view_slice(0, update_range_.begin, update_range_.end);
    backend(result.device()).elementwise->add_into(result, gradient_view_, have_reduced_);
    widened_ = Tensor();
  } else if (accumulated_.defined() && (have_reduced_ || !policy_.optimizer)) {
    const Tensor result = Tensor::over(gradients_, {update_range_.length()}, precision_.weights, update_range_.begin);
    backend(result.device()).elementwise->add_into(result, accumulated_, have_reduced_);
  }
  have_reduced_ = true;
  std::ranges::fill(contributed_, 0);
  if (policy_.gradients && !exact_) gradients_->release();
  gradients_state_ = GradientsState::empty;
}

void ShardedUnit::end_backward(bool keep) {
  ready_ = 0;
  if (!keep) have_reduced_ = false;
}

Tensor ShardedUnit::gradient_shard() const {
  return policy_.optimizer ? gradient_view_ : gradient_view_.view_slice(0, shard_.begin, shard_.end);
}

void ShardedUnit::start_publish() {
  if (!policy_.optimizer || policy_.parameters) return;
  RZ_CHECK(weights_state_ == WeightsState::gathered, "unit '{}' is published while its weights are on their way", plan_.name);
  gather_work_ = comm_.all_gather(at(weights_, shard_.begin), at(weights_), padded(), precision_.weights, {.name = plan_.name});
  weights_state_ = WeightsState::gathering;
}

void ShardedUnit::finish_publish() {
  if (!policy_.parameters) gather();
}

}  // namespace rz::optim
