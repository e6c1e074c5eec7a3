#include "tools/job_flags.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/job_file.h"

namespace rz::tools {

namespace {
// `--steps 100` is `--set training.steps=100`.
void add_shorthand(CLI::App& command, JobFlags& flags, const std::string& flag, const std::string& field, const std::string& help) {
  command.add_option_function<std::string>(
      flag, [&flags, field](const std::string& value) { flags.overrides.push_back(field + "=" + value); }, fmt::format("{} ({})", help, field));
}
}  // namespace

ringzero::Job JobFlags::load(const std::vector<std::string>& more) const {
  std::vector<std::string> all = overrides;
  all.insert(all.end(), more.begin(), more.end());
  return load_job(path, all);
}

bool JobFlags::sets(const std::string& field) const {
  return std::ranges::any_of(overrides, [&](const std::string& text) { return text.starts_with(field + "="); });
}

void add_job_flags(CLI::App& command, JobFlags& flags, bool job_required, bool ranks_flag) {
  auto* job = command.add_option("job", flags.path, "job file, protobuf text (proto/job.proto)");
  if (job_required) job->required();
  command.add_option("--set", flags.overrides, "override a field: path.to.field=value; may be repeated")->take_all()->allow_extra_args(false);
  add_shorthand(command, flags, "--steps", "training.steps", "optimizer steps");
  add_shorthand(command, flags, "--seed", "seed", "seed of everything random");
  add_shorthand(command, flags, "--threads", "training.threads", "compute threads of each rank, 0 = automatic");
  add_shorthand(command, flags, "--stage", "sharding.stage", "ZeRO stage: 0, 1, 2 or 3");
  add_shorthand(command, flags, "--bucket-mb", "sharding.bucket_mb", "bucket size in MiB, 0 = a bucket per unit, auto = chosen from trial steps");
  add_shorthand(command, flags, "--reduction", "sharding.reduction", "how gradients are summed: ring, ordered or exact");
  add_shorthand(command, flags, "--group-size", "sharding.group_size", "hybrid sharding in groups of so many ranks, 0 = all");
  add_shorthand(command, flags, "--micro-batch", "training.micro_batch", "sequences in a micro-batch of exact sums");
  add_shorthand(command, flags, "--accumulate", "training.accumulate", "micro-batches of a step");
  add_shorthand(command, flags, "--precision", "training.precision", "f32, bf16 or f16: type of weights, gradients and activations");
  add_shorthand(command, flags, "--reduce-dtype", "sharding.reduce_dtype", "type in which gradients are summed: f32 or that of the precision");
  add_shorthand(command, flags, "--recompute", "training.recompute", "what backward computes again: NONE, SELECTIVE, FULL or SQRT");
  add_shorthand(command, flags, "--memory-limit", "training.memory_limit_mb", "most that a rank may hold, MB, 0 = no limit");
  if (ranks_flag) add_shorthand(command, flags, "--ranks", "communication.ranks", "ranks as threads of this process, without mpirun");
  if (ranks_flag) add_shorthand(command, flags, "--link", "communication.link", "emulate links: 1Gbit,50us[,jitter 5us]");
  if (ranks_flag) add_shorthand(command, flags, "--inter-node-link", "communication.inter_node_link", "emulated links between nodes");
  if (ranks_flag) add_shorthand(command, flags, "--nodes", "communication.nodes", "emulated nodes, equal blocks of ranks");
  if (ranks_flag) add_shorthand(command, flags, "--transport", "communication.transport", "AUTO, THREADS or MPI");
  if (ranks_flag) add_shorthand(command, flags, "--intra-node", "communication.intra_node", "between ranks of a machine: WHERE_POSSIBLE, SHARED or MESSAGES");
}

}  // namespace rz::tools
