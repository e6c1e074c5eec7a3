#include "tools/run_summary.h"

#include <algorithm>

#include "optim/checkpoint/agreement.h"
#include "runtime/core/rank_context.h"

namespace rz::tools {

namespace {

nlohmann::ordered_json by_category(const CategoryBytes& bytes) {
  nlohmann::ordered_json json;
  for (size_t c = 0; c < kCategories; ++c) json[name(static_cast<Category>(c))] = bytes[c];
  return json;
}

nlohmann::ordered_json memory_of_this_rank() {
  MemoryTracker& memory = RankContext::current()->memory();
  const MemoryPeak peak = memory.peak();
  nlohmann::ordered_json json;
  json["peak_total_bytes"] = peak.total;
  json["peak_bytes"] = by_category(peak.by_category);
  nlohmann::ordered_json state;
  for (const Category c : {Category::parameter, Category::gradient, Category::optimizer_state}) state[name(c)] = memory.current_bytes(c);
  json["state_bytes"] = state;
  json["unaccounted_bytes"] = memory.unaccounted_bytes();
  for (size_t p = 0; p < kPhases; ++p) {
    const MemoryPeak phase = memory.peak(static_cast<Phase>(p));
    nlohmann::ordered_json entry;
    entry["total"] = phase.total;
    entry.update(by_category(phase.by_category));
    json["by_phase"][name(static_cast<Phase>(p))] = entry;
  }
  return json;
}

nlohmann::ordered_json wire_of_this_rank(const comm::Communicator& comm, int64_t steps) {
  const comm::WireStats stats = comm.wire_stats();
  nlohmann::ordered_json json;
  uint64_t sent = 0;
  for (int k = 0; k < comm::kCollectiveKinds; ++k) {
    const auto kind = static_cast<comm::CollectiveKind>(k);
    json["payload_bytes"][comm::name(kind)] = {{"sent", stats.of(kind).sent_bytes}, {"received", stats.of(kind).received_bytes}};
    sent += stats.of(kind).sent_bytes;
  }
  json["header_bytes"] = stats.header.sent_bytes;
  json["sent_bytes_per_step"] = steps > 0 ? static_cast<double>(sent) / static_cast<double>(steps) : 0.0;
  return json;
}

}  // namespace

void add_rank_summaries(nlohmann::ordered_json& summary, const optim::ShardedModel& model, comm::Communicator& comm, int64_t steps) {
  summary["parameters"] = model.payload_elements();
  summary["padded_parameters"] = model.padded_elements();
  nlohmann::ordered_json own;
  own["rank"] = comm.rank();
  own["memory"] = memory_of_this_rank();
  own["wire"] = wire_of_this_rank(comm, steps);
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
