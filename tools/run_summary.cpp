#include "tools/run_summary.h"

#include <algorithm>

#include "optim/checkpoint/agreement.h"
#include "runtime/core/allocator.h"
#include "runtime/core/rank_context.h"
#include "tools/resident.h"

namespace rz::tools {

namespace {

nlohmann::ordered_json wire_of_this_rank(Session& session, const comm::Communicator& comm) {
  const comm::WireStats stats = comm.wire_stats();
  const optim::StepMeter& meter = session.meter();
  const double steps = std::max<double>(1, static_cast<double>(meter.steps()));
  nlohmann::ordered_json json;
  json["sent_bytes_per_step"] = static_cast<double>(meter.sent_bytes()) / steps;
  json["scalar_bytes_per_step"] = static_cast<double>(meter.scalar_bytes()) / steps;
  json["payload_bytes"] = session.sharded().payload_bytes();
  for (int k = 0; k < comm::kCollectiveKinds; ++k) {
    const auto kind = static_cast<comm::CollectiveKind>(k);
    json["by_operation"][comm::name(kind)] = {{"sent", stats.of(kind).sent_bytes}, {"received", stats.of(kind).received_bytes}};
  }
  json["header_bytes"] = stats.header.sent_bytes;
  return json;
}

}  // namespace

nlohmann::ordered_json by_category(const CategoryBytes& bytes) {
  nlohmann::ordered_json json;
  for (size_t c = 0; c < kCategories; ++c) json[name(static_cast<Category>(c))] = bytes[c];
  return json;
}

nlohmann::ordered_json memory_json(const optim::MemoryReading& memory) {
  nlohmann::ordered_json json;
  json["peak_total_bytes"] = memory.peak.total;
  json["peak_bytes"] = by_category(memory.peak.by_category);
  json["at_total_peak_bytes"] = by_category(memory.peak.at_total_peak);
  nlohmann::ordered_json state;
  for (const Category c : {Category::parameter, Category::gradient, Category::optimizer_state}) state[name(c)] = memory.current_bytes(c);
  json["state_bytes"] = state;
  json["unaccounted_bytes"] = memory.unaccounted_bytes;
  for (size_t p = 0; p < kPhases; ++p) {
    nlohmann::ordered_json entry;
    entry["total"] = memory.by_phase[p].total;
    entry.update(by_category(memory.by_phase[p].by_category));
    json["by_phase"][name(static_cast<Phase>(p))] = entry;
  }
  return json;
}

void add_rank_summaries(nlohmann::ordered_json& summary, Session& session, comm::Communicator& comm, int64_t baseline_bytes) {
  summary["parameters"] = session.sharded().payload_elements();
  summary["padded_parameters"] = session.sharded().padded_elements();
  nlohmann::ordered_json own;
  own["rank"] = comm.rank();
  own["memory"] = memory_json(optim::read_memory(RankContext::current()->memory()));
  own["memory"]["step_peak_bytes"] = by_category(session.meter().memory().by_category);
  own["memory"]["step_peaks_constant_since"] = session.meter().memory_constant_since();
  own["memory"]["rss_baseline_bytes"] = baseline_bytes;
  own["memory"]["rss_peak_bytes"] = peak_resident_bytes();
  own["memory"]["allocator_bytes"] = allocator::stats().mapped_bytes;
  own["wire"] = wire_of_this_rank(session, comm);
  int64_t peak = 0;
  auto per_rank = nlohmann::ordered_json::array();
  for (const auto& text : optim::checkpoint::gather_strings(comm, own.dump())) {
    per_rank.push_back(nlohmann::ordered_json::parse(text));
    peak = std::max(peak, per_rank.back()["memory"]["peak_total_bytes"].get<int64_t>());
  }
  summary["peak_bytes"] = peak;
  summary["per_rank"] = per_rank;
}

}  // namespace rz::tools
