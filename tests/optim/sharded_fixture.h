// A few steps of a small model under any policy, for tests that compare policies, ranks and buckets.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/transformer/transformer.h"
#include "optim/shard/micro_batches.h"
#include "optim/trainer.h"
#include "runtime/core/random.h"
#include "tests/support/ranks.h"

namespace rz::optim {

inline Schedule test_schedule() { return {Schedule::Kind::cosine, 0.01, 0.001, 2, 10}; }

// What a run leaves behind, for comparing bits.
struct Trace {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<int64_t> skipped;  // steps that loss scaling skipped
  std::vector<int> repeats;  // of exact mode
  uint64_t digest = 0;
  bool operator==(const Trace&) const = default;
};

struct RunSettings {
  int ranks = 1;
  int stage = 0;
  int64_t steps = 4;
  int64_t batch = 15;  // sequences, enough for 7 ranks x 2 micro-batches
  int64_t bucket_bytes = 0;
  Accumulation accumulation;
  comm::Order order = comm::Order::ring;
  int64_t micro_batch = 0;  // above 0: order-independent sums over micro-batches of so many sequences
  int64_t group_size = 0;
  int prefetch = 1;
  int64_t prefetch_bytes = 0;
  bool overlap = true;
  Experiment experiment = {};
  comm::LaunchOptions launch = {};
  double clip_norm = 0.5;
  double ema_decay = 0;
  Precision precision;
  LossScaling scaling;
  Schedule schedule = test_schedule();
};

// 16-bit training with either type of the reduction; under sanitizers two of the four.
inline std::vector<Precision> sixteen_bit_precisions() {
  if (test::kSanitized) return {{DType::bf16, DType::f32}, {DType::f16, DType::f16}};
  return {{DType::bf16, DType::f32}, {DType::bf16, DType::bf16}, {DType::f16, DType::f32}, {DType::f16, DType::f16}};
}

inline models::TransformerConfig tiny_gpt() {
  models::TransformerConfig c;
  c.layers = 3;
  c.width = 12;
  c.heads = 3;
  c.context = 8;
  c.vocabulary = 11;
  c.mlp_width = 20;
  return c;
}

inline std::unique_ptr<Optimizer> test_rule() { return make_adam({0.9, 0.95, 1e-8, 0.1, true}); }

// Token batches are a pure function of (step, global sample).
inline Tensor test_tokens(int64_t step, int64_t first, int64_t count, int64_t context, int64_t vocabulary, int64_t shift) {
  std::vector<int32_t> ids;
  for (int64_t b = first; b < first + count; ++b) {
    const Random random(9, "tokens", static_cast<uint64_t>(step), static_cast<uint64_t>(b));
    for (int64_t t = 0; t < context; ++t) ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(t + shift), static_cast<uint64_t>(vocabulary))));
  }
  CategoryScope category(Category::input);
  return Tensor::of<int32_t>({count, context}, ids, "tokens");
}

inline int64_t share_begin(int64_t count, int part, int parts) { return count * part / parts; }

using ModelSteps = std::function<MicroLoss(int64_t step, int64_t first, int64_t count)>;

// This rank's part in a round of exact mode: its micro-batch, or what takes part without counting.
template <class F>
MicroLoss exact_loss(const MicroBatches& list, int64_t round, comm::Communicator& comm, int stage, F&& loss_of) {
  if (const auto index = list.at(round, comm.rank(), comm.size())) return loss_of(list.samples(*index));
  if (stage < 3) return {.counts = false};
  MicroLoss spare = loss_of(list.samples(0));
  spare.counts = false;
  return spare;
}

// Trains on the ranks of `comm`; `forward` is the model's loss of some global samples.
inline Trace train_on(comm::Communicator& comm, nn::Module& model, const RunSettings& s, const ModelSteps& forward,
                      const std::function<void(ShardedModel&, ShardedOptimizer&, int64_t step)>& after_step = {}) {
  ShardingOptions options;
  options.policy = policy_of_stage(s.stage);
  options.bucket_bytes = s.bucket_bytes;
  options.accumulation = s.accumulation;
  options.order = s.order;
  options.prefetch = s.prefetch;
  options.prefetch_bytes = s.prefetch_bytes;
  options.overlap = s.overlap;
  options.experiment = s.experiment;
  options.precision = s.precision;
  options.seed = 3;
  options.group_size = s.group_size;
  const MicroBatches list(s.batch, std::max<int64_t>(1, s.micro_batch));
  const bool exact = s.micro_batch > 0;
  if (exact) {
    options.exact_micro_batches = list.count();
    options.accumulation.micro_batches = list.rounds(comm.size());
  }
  ShardedModel sharded(model, comm, options);
  ShardedOptimizer optimizer(sharded, test_rule(), false, s.ema_decay);
  Trainer trainer(sharded, optimizer, s.schedule, s.clip_norm, s.scaling);
  const int64_t begin = share_begin(s.batch, comm.rank(), comm.size());
  const int64_t count = share_begin(s.batch, comm.rank() + 1, comm.size()) - begin;
  const auto micros = static_cast<int>(s.accumulation.micro_batches);
  Trace trace;
  for (int64_t step = 0; step < s.steps; ++step) {
    const auto result = trainer.step(step, [&](int64_t m) {
      if (exact) return exact_loss(list, m, comm, s.stage, [&](Range r) { return forward(step, r.begin, r.length()); });
      const int64_t from = share_begin(count, static_cast<int>(m), micros);
      return forward(step, begin + from, share_begin(count, static_cast<int>(m) + 1, micros) - from);
    });
    trace.losses.push_back(result.loss);
    trace.norms.push_back(result.gradient_norm);
    if (result.skipped) trace.skipped.push_back(step);
    trace.repeats.push_back(result.repeats);
    if (after_step) after_step(sharded, optimizer, step);
  }
  trace.digest = sharded.weights_digest();
  return trace;
}

inline MicroLoss gpt_loss(models::Transformer& gpt, const RunSettings& s, int64_t step, int64_t first, int64_t count) {
  const auto& c = gpt.config();
  const double scale = 1.0 / static_cast<double>(s.batch * c.context);
  auto r = gpt.loss(test_tokens(step, first, count, c.context, c.vocabulary, 0), test_tokens(step, first, count, c.context, c.vocabulary, 1), scale);
  return {std::move(r.loss), r.sum, r.count};
}

// Every rank's trace of training a tiny GPT.
inline std::vector<Trace> train_gpt(const RunSettings& s, const models::TransformerConfig& config = tiny_gpt()) {
  std::vector<Trace> traces(static_cast<size_t>(s.ranks));
  test::run_on_ranks(
      s.ranks,
      [&](comm::Communicator& comm) {
        models::Transformer gpt(config);
        traces[static_cast<size_t>(comm.rank())] =
            train_on(comm, gpt, s, [&](int64_t step, int64_t first, int64_t count) { return gpt_loss(gpt, s, step, first, count); });
      },
      s.launch);
  return traces;
}

}  // namespace rz::optim
