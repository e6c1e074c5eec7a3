#include "tools/overlap/what_if.h"

#include <bit>

#include "runtime/core/error.h"
#include "tools/job_file.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

constexpr int64_t kMostPrefetch = 8;
constexpr double kMebibyte = 1 << 20;

// A difference that no measurement would show is none: the smaller setting stays.
constexpr double kBetter = 0.995;

}  // namespace

WhatIf with(WhatIf what, const std::string& override_text) {
  what.overrides.push_back(override_text);
  return what;
}

ringzero::Job Predictor::job_of(const WhatIf& what) const {
  return parse_job(effective_text(recorded_.job), "the recorded job", what.overrides);
}

comm::NetworkSpec Predictor::network_of(const WhatIf& what) const {
  RZ_CONFIG_CHECK(what.link || !recorded_.fitted || recorded_.fitted->operations > 0 || what.ranks.value_or(recorded_.ranks) == 1,
                  "one rank was recorded, without emulated links: a simulation of {} needs a link, such as --link 1Gbit,50us",
                  what.ranks.value_or(recorded_.ranks));
  if (!what.link && !what.inter_node_link && !what.nodes) return recorded_.network;
  const auto& c = recorded_.job.communication();
  const bool as_fitted = !what.link && recorded_.fitted;
  const int64_t nodes = what.nodes.value_or(c.nodes());
  // One node has no links between nodes.
  const std::string between = what.inter_node_link.value_or(nodes > 1 ? c.inter_node_link() : "");
  comm::NetworkSpec network = comm::parse_network(as_fitted ? "unlimited" : what.link.value_or(c.link()), between, nodes);
  if (as_fitted) {
    network.inside = recorded_.fitted->link;
    if (between.empty()) network.between = network.inside;
  }
  network.seed = recorded_.job.seed();
  return network;
}

const StepScript& Predictor::script_of(const ringzero::Job& job, int ranks) {
  const std::pair key{effective_text(job), ranks};
  const auto found = scripts_.find(key);
  return found != scripts_.end() ? found->second : scripts_.emplace(key, dry_script(job, ranks)).first->second;
}

Prediction Predictor::predict(const WhatIf& what) {
  const ringzero::Job job = job_of(what);
  Prediction out;
  out.ranks = what.ranks.value_or(recorded_.ranks);
  if (const int64_t count = sums_exactly(job) ? micro_batches(job).count() : 0; out.ranks != recorded_.ranks)
    for (const int ranks : {recorded_.ranks, out.ranks})
      RZ_CONFIG_CHECK(count % ranks == 0,
                      "the {} micro-batches of exact sums do not fall evenly on {} ranks: they compute for different times, which a recording of {} ranks "
                      "does not tell",
                      count, ranks, recorded_.ranks);
  const StepScript& script = script_of(job, out.ranks);
  out.network = network_of(what);
  out.network.check_ranks(out.ranks);
  out.batch = script.batch;
  out.stage = job.sharding().stage();
  out.bucket_mb = job.sharding().bucket_mb();
  out.prefetch = job.sharding().prefetch();
  out.overlap = job.sharding().overlap();
  out.collectives = script.operations.size();
  out.notes = script.notes;
  SimulationOptions options{
      .network = out.network, .message = recorded_.costs.message, .same_machine = what.same_machine, .steps = what.steps};
  // Where ranks of one machine talked without emulated links, what their links seemed to take was work, which other links do not save.
  if (recorded_.fitted && what.link && recorded_.one_machine)
    options.message = {recorded_.fitted->link.latency_s * 1e9, 1e9 / recorded_.fitted->link.bytes_per_s};
  if (!what.same_machine && recorded_.one_machine && out.ranks * recorded_.threads > recorded_.cores)
    out.notes.push_back(fmt::format(
        "{} ranks x {} threads are simulated with a core for each thread; --same-machine: on the {} cores of the recorded machine",
        out.ranks, recorded_.threads, recorded_.cores));
  if (const int most = recorded_.ranks_per_machine * recorded_.threads; most > recorded_.cores && out.ranks != recorded_.ranks)
    out.notes.push_back(fmt::format(
        "recorded with {} computing threads on {} cores: what taking turns cost them is only roughly known; a recording with no more "
        "threads than cores says more about other numbers of ranks",
        most, recorded_.cores));
  out.run = simulate(recorded_, script, options);
  return out;
}

std::vector<double> Predictor::bucket_candidates(const WhatIf& what) {
  const int ranks = what.ranks.value_or(recorded_.ranks);
  const StepScript& any = script_of(job_of(what), ranks);
  std::vector<double> out;
  std::vector<uint64_t> before;
  for (double bytes = std::bit_floor(static_cast<uint64_t>(any.smallest_tensor_bytes));; bytes *= 2) {
    const double mb = bytes / kMebibyte;
    const StepScript& script = script_of(job_of(with(what, fmt::format("sharding.bucket_mb={}", mb))), ranks);
    std::vector<uint64_t> sizes;
    for (const ScriptOperation& o : script.operations) sizes.push_back(o.bytes);
    if (sizes != before) out.push_back(mb);
    before = std::move(sizes);
    if (bytes >= static_cast<double>(any.parameter_bytes)) return out;
  }
}

Predictor::Best Predictor::best_bucket(const WhatIf& what) {
  // A bucket for each unit, the default, stays unless another size is better.
  Best best{with(what, "sharding.bucket_mb=0"), {}};
  best.prediction = predict(best.what);
  for (const double mb : bucket_candidates(what)) {
    WhatIf candidate = with(what, fmt::format("sharding.bucket_mb={}", mb));
    Prediction prediction = predict(candidate);
    if (prediction.run.timing.step_ms < kBetter * best.prediction.run.timing.step_ms) best = {std::move(candidate), std::move(prediction)};
  }
  return best;
}

Predictor::Best Predictor::best_prefetch(const WhatIf& what) {
  Best best{with(what, "sharding.prefetch=0"), {}};
  best.prediction = predict(best.what);
  if (best.prediction.stage != 3 || !best.prediction.overlap) return {what, predict(what)};
  for (int64_t prefetch = 1; prefetch <= kMostPrefetch; prefetch *= 2) {
    WhatIf candidate = with(what, fmt::format("sharding.prefetch={}", prefetch));
    Prediction prediction = predict(candidate);
    if (prediction.run.timing.step_ms < kBetter * best.prediction.run.timing.step_ms) best = {std::move(candidate), std::move(prediction)};
  }
  return best;
}

}  // namespace rz::tools
