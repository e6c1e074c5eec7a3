#include "optim/shard/sharded_unit.h"

#include <algorithm>

#include "comm/error.h"
#include "runtime/kernels/backend.h"

namespace rz::optim {

namespace {

constexpr size_t kElementBytes = sizeof(float);

void zero(float* data, Range range) {
  if (!dry_run()) std::fill(data + range.begin, data + range.end, 0.0f);
}

size_t bytes_of(int64_t elements) { return static_cast<size_t>(elements) * kElementBytes; }

float* floats(const std::shared_ptr<Storage>& storage) { return reinterpret_cast<float*>(storage->data()); }

}  // namespace

ShardedUnit::ShardedUnit(BucketPlan plan, const ShardingPolicy& policy, const Accumulation& accumulation, comm::Order order,
                         comm::Communicator& comm)
    : plan_(std::move(plan)),
      layout_(plan_.parameters, comm.size()),
      policy_(policy),
      accumulation_(accumulation),
      order_(order),
      comm_(comm),
      shard_(layout_.shard(comm.rank())),
      update_range_(policy.optimizer ? shard_ : layout_.whole()),
      contributed_(plan_.parameters.size(), 0) {
  const auto full_bytes = bytes_of(layout_.padded_elements());
  const auto shard_bytes = bytes_of(layout_.shard_elements());
  if (policy_.parameters) {
    weights_ = Storage::make_released(full_bytes, Category::communication, plan_.name + " gathered weights");
    weights_shard_ = Storage::make(shard_bytes, Category::parameter, plan_.name + " weight shard");
    zero(floats(weights_shard_), {0, shard_.length()});
    weight_view_ = Tensor::over(weights_shard_, {shard_.length()}, DType::f32);
  } else {
    weights_ = Storage::make(full_bytes, Category::parameter, plan_.name + " weights");
    zero(floats(weights_), layout_.whole());
    weight_view_ = Tensor::over(weights_, {update_range_.length()}, DType::f32, update_range_.begin);
    weights_state_ = WeightsState::gathered;
  }
  for (const FlatEntry& entry : layout_.entries()) entry.parameter->value.rebind_storage(weights_, entry.offset);
  if (!plan_.trainable) return;

  const bool transient = policy_.gradients;
  gradients_ = Storage::make_released(full_bytes, transient ? Category::communication : Category::gradient, plan_.name + " gradients");
  if (!transient) materialize_gradients();
  if (transient || (accumulation_.reduce_every && accumulation_.micro_batches > 1)) {
    accumulated_ = Tensor::empty({update_range_.length()}, DType::f32, Category::gradient, plan_.name + " reduced gradients");
    gradient_view_ = accumulated_;
  } else {
    gradient_view_ = Tensor::over(gradients_, {update_range_.length()}, DType::f32, update_range_.begin);
  }
}

ShardedUnit::~ShardedUnit() {
  for (const comm::Work* work : {&gather_work_, &reduce_work_, &publish_work_}) {
    try {
      work->wait();
    } catch (const comm::CommError&) {
      // The job has failed, and its first error is on its way out; what matters here is that nothing uses the buffers any more.
    }
  }
}

float* ShardedUnit::kept_weights() const { return floats(policy_.parameters ? weights_shard_ : weights_); }

void ShardedUnit::initialize(uint64_t seed) {
  for_each_part(kept_range(), kept_weights(),
                [&](const FlatEntry& entry, Range part, float* data) { nn::initial_values(*entry.parameter, seed, part.begin, part.end, data); });
}

void ShardedUnit::start_gather() {
  if (weights_state_ != WeightsState::sharded) return;
  weights_->materialize();
  gather_work_ = comm_.all_gather(floats(weights_shard_), floats(weights_), padded(), DType::f32, {.name = plan_.name});
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

void ShardedUnit::materialize_gradients() {
  if (gradients_->is_materialized()) return;
  gradients_->materialize();
  for (const Range& gap : layout_.padding()) zero(floats(gradients_), gap);
}

autograd::GradientTarget ShardedUnit::gradient_target(size_t index) {
  RZ_CHECK(gradients_state_ != GradientsState::reducing, "a gradient of '{}' arrived after its unit was reduced",
           layout_.entries().at(index).parameter->name);
  materialize_gradients();
  gradients_state_ = GradientsState::accumulating;
  const FlatEntry& entry = layout_.entries()[index];
  const bool accumulate = contributed_[index] != 0;
  contributed_[index] = 1;
  return {Tensor::over(gradients_, entry.parameter->shape(), DType::f32, entry.offset), accumulate};
}

bool ShardedUnit::entry_ready(size_t index) {
  RZ_CHECK(ready_ < layout_.entries().size(), "'{}' became ready twice", layout_.entries().at(index).parameter->name);
  return ++ready_ == layout_.entries().size();
}

void ShardedUnit::start_reduce() {
  RZ_CHECK(gradients_state_ != GradientsState::reducing, "unit '{}' is being reduced already", plan_.name);
  materialize_gradients();
  float* full = floats(gradients_);
  for (size_t i = 0; i < contributed_.size(); ++i)
    if (!contributed_[i]) zero(full, layout_.entries()[i].range());
  if (!policy_.optimizer) {
    reduce_work_ = comm_.all_reduce(full, padded(), DType::f32, comm::ReduceOp::sum, {.name = plan_.name, .order = order_});
  } else {
    // The first result lands in its place; later ones beside it, to be added.
    const bool direct = accumulated_.defined() && !have_reduced_;
    float* own = direct ? accumulated_.data<float>() : full + shard_.begin;
    reduce_work_ = comm_.reduce_scatter(full, own, padded(), DType::f32, comm::ReduceOp::sum, {.name = plan_.name, .order = order_});
  }
  gradients_state_ = GradientsState::reducing;
}

void ShardedUnit::finish_reduce() {
  if (gradients_state_ != GradientsState::reducing) return;
  reduce_work_.wait();
  if (accumulated_.defined() && (have_reduced_ || !policy_.optimizer)) {
    const Tensor result = Tensor::over(gradients_, {update_range_.length()}, DType::f32, update_range_.begin);
    backend(result.device()).elementwise->add_into(result, accumulated_, have_reduced_);
  }
  have_reduced_ = true;
  std::ranges::fill(contributed_, 0);
  if (policy_.gradients) gradients_->release();
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
  float* full = floats(weights_);
  publish_work_ = comm_.all_gather(full + shard_.begin, full, padded(), DType::f32, {.name = plan_.name});
}

void ShardedUnit::finish_publish() {
  publish_work_.wait();
  publish_work_ = {};
}

}  // namespace rz::optim
