#include "tools/plan.h"

#include <algorithm>
#include <chrono>

#include "comm/dry.h"
#include "optim/checkpoint/slice_table.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "tools/compute.h"
#include "tools/diffusion_task.h"
#include "tools/dry_task.h"
#include "tools/job_auto.h"
#include "tools/run_summary.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

namespace checkpoint = optim::checkpoint;

constexpr int64_t kSteps = 2;  // from the second on all are alike

// What the run's save holds beside the states: the tables of all ranks' slices, then the buffer in which it verifies what it
// wrote.
void pretend_to_save(Session& session, int ranks) {
  PhaseScope phase(Phase::save);
  std::vector<checkpoint::SliceRow> rows;
  for (const auto& slice : session.slices_to_save()) rows.push_back({slice.name, slice.dtype, slice.full_shape, slice.begin, slice.end});
  const size_t table_bytes = checkpoint::pack_rows(rows).size() * static_cast<size_t>(ranks);
  Storage::make(table_bytes, Category::workspace, "checkpoint: strings of all ranks");
  const auto buffer = Storage::make(checkpoint::kBufferBytes, Category::workspace, "checkpoint: verification buffer");
}

}  // namespace

Plan make_plan(const ringzero::Job& given, const PlanOptions& options) {
  RZ_CONFIG_CHECK(options.ranks >= 1 && options.ranks <= kMaxPlannedRanks, "ranks must be between 1 and {}, not {}", kMaxPlannedRanks, options.ranks);
  RZ_CONFIG_CHECK(options.rank >= 0 && options.rank < options.ranks, "rank {} is not one of {}", options.rank, options.ranks);
  const auto start = std::chrono::steady_clock::now();
  Plan plan;
  ringzero::Job job = given;
  if (const int64_t least = least_batch(job, options.ranks); job.training().batch() < least) {
    plan.notes.push_back(fmt::format("training.batch is {}: planned with {}, one sequence for each rank and micro-batch", job.training().batch(), least));
    job.mutable_training()->set_batch(least);
  }
  if (job.sharding().bucket_mb() == kAuto) {
    plan.notes.push_back("sharding.bucket_mb is auto, which only a run can choose: planned with a bucket for each unit");
    job.mutable_sharding()->set_bucket_mb(0);
  }
  plan.ranks = options.ranks;
  plan.rank = options.rank;
  plan.stage = job.sharding().stage();
  plan.batch = job.training().batch();

  const RankContextScope scope(RankContext::make_dry(options.rank));
  comm::Communicator comm = comm::make_dry_communicator(options.rank, options.ranks);
  PhaseScope phase(Phase::init);
  set_compute(job, comm);
  plan.threads = thread_count();
  auto task = make_dry_task(job, plan.notes);
  check_same_job(job, *task, comm);
  Session session(job, std::move(task), comm);
  for (int64_t step = 0; step < std::min(kSteps, job.training().steps()); ++step) session.train_step(step);
  session.meter().finish();
  if (options.through) {
    session.evaluate();
    if (auto* diffusion = dynamic_cast<DiffusionTask*>(&session.task()); diffusion != nullptr && job.training().sample_every() > 0)
      session.with_sampled_weights([&] { diffusion->sample(job.training(), comm); });
    pretend_to_save(session, options.ranks);
    session.sharded().weights_digest();
  }
  plan.parameters = session.sharded().payload_elements();
  plan.padded_parameters = session.sharded().padded_elements();
  plan.payload_bytes = session.sharded().payload_bytes();
  plan.units = optim::read_units(session.sharded());
  plan.memory = optim::read_memory(RankContext::current()->memory());
  plan.traffic = session.meter().last();
  plan.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return plan;
}

nlohmann::ordered_json plan_json(const ringzero::Job& job, const Plan& plan) {
  nlohmann::ordered_json json;
  json["name"] = job.name();
  json["ranks"] = plan.ranks;
  json["rank"] = plan.rank;
  json["stage"] = plan.stage;
  json["threads"] = plan.threads;
  json["batch"] = plan.batch;
  json["parameters"] = plan.parameters;
  json["padded_parameters"] = plan.padded_parameters;
  json["units"] = nlohmann::ordered_json::array();
  for (const auto& unit : plan.units) {
    nlohmann::ordered_json u;
    u["name"] = unit.name;
    u["outermost"] = unit.outermost;
    u["trainable"] = unit.trainable;
    u["tensors"] = unit.tensors;
    u["parameters"] = unit.payload_elements;
    u["padded_parameters"] = unit.padded_elements;
    u["padding"] = unit.padded_elements - unit.payload_elements;
    u["shard"] = {unit.shard.begin, unit.shard.end};
    json["units"].push_back(std::move(u));
  }
  json["memory"] = memory_json(plan.memory);
  json["wire"]["sent_bytes_per_step"] = plan.traffic.sent_bytes();
  json["wire"]["scalar_bytes_per_step"] = plan.traffic.scalar_bytes;
  json["wire"]["payload_bytes"] = plan.payload_bytes;
  for (int k = 0; k < comm::kCollectiveKinds; ++k) {
    const auto& count = plan.traffic.by_kind[static_cast<size_t>(k)];
    json["wire"]["by_operation"][comm::name(static_cast<comm::CollectiveKind>(k))] = {{"sent", count.sent_bytes}, {"received", count.received_bytes}};
  }
  json["notes"] = plan.notes;
  json["plan_seconds"] = plan.seconds;
  return json;
}

std::string format_bytes(double bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < kUnits.size()) bytes /= 1000, ++unit;
  if (unit == 0) return fmt::format("{:.0f} B", bytes);
  return fmt::format("{:.{}f} {}", bytes, bytes < 9.995 ? 2 : bytes < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string format_count(int64_t value) {
  std::string text = std::to_string(value);
  for (auto i = static_cast<std::ptrdiff_t>(text.size()) - 3; i > (value < 0 ? 1 : 0); i -= 3) text.insert(static_cast<size_t>(i), 1, ',');
  return text;
}

}  // namespace rz::tools
