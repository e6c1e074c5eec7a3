#include "tools/plan_command.h"

#include <cstdio>
#include <memory>

#include "tools/job_flags.h"
#include "tools/plan.h"
#include "tools/progress.h"

namespace rz::tools {

namespace {

constexpr size_t kUnitsShown = 12;

void print_unit(const optim::UnitReading& u) {
  fmt::print("  {:<28}{:>8}{:>22}{:>10}  [{}, {}){}{}\n", u.name, u.tensors, format_count(u.payload_elements), u.padded_elements - u.payload_elements,
             format_count(u.shard.begin), format_count(u.shard.end), u.outermost ? "  stays gathered" : "", u.trainable ? "" : "  frozen");
}

void print_units(const Plan& plan, bool all) {
  fmt::print("\n  {:<28}{:>8}{:>22}{:>10}  elements of the shard\n", "unit", "tensors", "parameters", "padding");
  const size_t count = plan.units.size();
  const size_t head = all || count <= kUnitsShown ? count : kUnitsShown - 2;
  for (size_t i = 0; i < head; ++i) print_unit(plan.units[i]);
  if (head == count) return;
  fmt::print("  ... {} more ...\n", count - head - 1);
  print_unit(plan.units.back());
}

void print_memory(const optim::MemoryReading& memory) {
  fmt::print("\n  {:<22}{:>20}{:>20}{:>12}\n", "bytes of this rank", "between steps", "peak", "");
  for (size_t c = 0; c < kCategories; ++c)
    if (memory.peak.by_category[c] > 0)
      fmt::print("  {:<22}{:>20}{:>20}{:>12}\n", name(static_cast<Category>(c)), format_count(memory.current[c]), format_count(memory.peak.by_category[c]),
                 format_bytes(static_cast<double>(memory.peak.by_category[c])));
  int64_t now = 0;
  for (const int64_t bytes : memory.current) now += bytes;
  fmt::print("  {:<22}{:>20}{:>20}{:>12}\n\n  {:<22}{:>20}  most of it\n", "total", format_count(now), format_count(memory.peak.total),
             format_bytes(static_cast<double>(memory.peak.total)), "peak in phase", "total");
  for (size_t p = 0; p < kPhases; ++p) {
    const MemoryPeak& peak = memory.by_phase[p];
    if (peak.total == 0) continue;
    size_t most = 0;
    for (size_t c = 1; c < kCategories; ++c)
      if (peak.at_total_peak[c] > peak.at_total_peak[most]) most = c;
    fmt::print("  {:<22}{:>20}  {} {}\n", name(static_cast<Phase>(p)), format_count(peak.total), name(static_cast<Category>(most)),
               format_bytes(static_cast<double>(peak.at_total_peak[most])));
  }
}

void print_wire(const Plan& plan) {
  fmt::print("\n  {:<22}{:>20}{:>20}\n", "bytes on the wire, step", "sent", "received");
  for (int k = 0; k < comm::kCollectiveKinds; ++k) {
    const auto& count = plan.traffic.by_kind[static_cast<size_t>(k)];
    if (count.sent_bytes == 0 && count.received_bytes == 0) continue;
    fmt::print("  {:<22}{:>20}{:>20}\n", comm::name(static_cast<comm::CollectiveKind>(k)), format_count(static_cast<int64_t>(count.sent_bytes)),
               format_count(static_cast<int64_t>(count.received_bytes)));
  }
  const auto payload = static_cast<double>(plan.payload_bytes);
  fmt::print("  weights and gradients sent: {} = {:.4f} x the payload of {}\n", format_count(static_cast<int64_t>(plan.traffic.sent_bytes())),
             static_cast<double>(plan.traffic.sent_bytes()) / payload, format_bytes(payload));
}

}  // namespace

void add_plan_command(CLI::App& app) {
  struct Flags {
    JobFlags job;
    PlanOptions options;
    bool json = false;
    bool all = false;
  };
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand("plan", "what a rank of a job will hold and send, from a dry run: any model, any number of ranks");
  add_job_flags(*command, flags->job, true, false);
  command->add_option("--ranks", flags->options.ranks, "ranks of the job")->capture_default_str();
  command->add_option("--rank", flags->options.rank, "the rank to plan for; the first ranks have the larger shares of a batch")->capture_default_str();
  command->add_flag("--units", flags->all, "list every unit");
  command->add_flag("--json", flags->json, "print a JSON object");
  command->callback([flags] {
    const ringzero::Job job = flags->job.load();
    const Plan plan = make_plan(job, flags->options);
    if (flags->json) {
      fmt::print("{}\n", plan_json(job, plan).dump(2));
      return;
    }
    fmt::print("{}: {} parameters ({} with padding) in {} units, stage {}, rank {} of {}, {} threads, {} sequences a step\n", job.name(),
               format_quantity(static_cast<double>(plan.parameters)), format_count(plan.padded_parameters), plan.units.size(), plan.stage, plan.rank,
               plan.ranks, plan.threads, plan.batch);
    for (const auto& note : plan.notes) fmt::print("note: {}\n", note);
    print_units(plan, flags->all);
    print_memory(plan.memory);
    print_wire(plan);
    fmt::print("\nplanned in {:.0f} ms\n", plan.seconds * 1e3);
  });
}

}  // namespace rz::tools
