#include "tools/state_form.h"

#include <fmt/format.h>

#include "tools/session.h"

namespace rz::tools {

std::string StateForm::text() const {
  std::string sum;
  if (full > 0) sum = fmt::format("{:g} P", full);
  if (sharded > 0) sum += fmt::format("{}{:g} P/{}", sum.empty() ? "" : " + ", sharded, grouped ? "k" : "N");
  return sum;
}

StateForm state_form(const ringzero::Job& job, int64_t stage, int ranks) {
  const optim::ShardingOptions options = sharding_options(job, 0, ranks);
  const optim::ShardingPolicy policy = optim::policy_of_stage(stage);
  const auto word = static_cast<double>(size_bytes(options.precision.weights));
  constexpr double kFloat = 4;
  constexpr double kSum = 8;
  StateForm form;
  form.grouped = options.group_size > 0 && options.group_size < ranks;
  form.shards = form.grouped ? static_cast<int>(options.group_size) : ranks;
  const auto add = [&](double bytes, bool is_sharded) { (is_sharded ? form.sharded : form.full) += bytes; };

  add(word, policy.parameters);
  const auto state_tensors = static_cast<double>(make_optimizer(job.optimizer())->state_names().size());
  const double master = options.precision.mixed() ? kFloat : 0;
  const double average = job.training().ema_decay() > 0 ? kFloat : 0;
  add(kFloat * state_tensors + master + average, policy.optimizer);
  // Gradients: see exact_gradients.h for order-independent sums; reduced ones lie apart where micro-batches go on writing to the full ones.
  const bool apart = options.accumulation.reduce_every && options.accumulation.micro_batches > 1;
  if (options.exact_micro_batches > 0) {
    add(kFloat, policy.optimizer);
    if (!policy.gradients) add(kSum, false);
    if (apart) add(kSum, policy.optimizer);
  } else {
    add(word, policy.gradients);
    if (apart && !policy.gradients) add(word, policy.optimizer);
  }
  return form;
}

}  // namespace rz::tools
