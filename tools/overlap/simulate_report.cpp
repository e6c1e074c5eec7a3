#include "tools/overlap/simulate_report.h"

#include <fmt/format.h>

namespace rz::tools {

namespace {

double tokens_per_s(const RecordedRun& recorded) {
  return static_cast<double>(recorded.script.batch * recorded.script.items_per_sample) / (recorded.timing.step_ms * 1e-3);
}

// How far the replayed step is from the recorded one.
double replay_error(const RecordedRun& recorded, const SimulationReport& report) {
  return report.replayed.run.timing.step_ms / recorded.timing.step_ms - 1;
}

std::string bucket_text(double mb) { return mb == 0 ? "unit" : fmt::format("{:.4g}", mb); }

std::string network_text(const comm::NetworkSpec& n) {
  std::string out = n.inside.str();
  if (n.nodes > 1) out += fmt::format(" | {} nodes {}", n.nodes, n.between.str());
  if (!n.exceptions.empty()) out += fmt::format(" and {} links of their own", n.exceptions.size());
  return out;
}

constexpr const char* kHeader = "{:<12}{:>7}{:>7}{:>11}{:>10}{:>12}{:>10}{:>10}{:>9}{:>11}{:>8}{:>12}  {}\n";

std::string header() {
  return fmt::format(fmt::runtime(kHeader), "", "ranks", "stage", "bucket", "prefetch", "step ms", "compute", "exposed", "other",
                     "transfers", "hidden", "tokens/s", "links");
}

std::string row(const std::string& label, const Prediction& p, const StepTiming& t, double tokens) {
  return fmt::format(fmt::runtime(kHeader), label, p.ranks, p.stage, bucket_text(p.bucket_mb),
                     p.overlap ? fmt::format("{}", p.prefetch) : "off", fmt::format("{:.3f}", t.step_ms),
                     fmt::format("{:.3f}", t.compute_ms), fmt::format("{:.3f}", t.exposed_ms), fmt::format("{:.3f}", t.other_ms()),
                     fmt::format("{:.3f}", t.communication_ms), fmt::format("{:.1f}%", 100 * t.hidden_fraction()),
                     fmt::format("{:.0f}", tokens), network_text(p.network));
}

std::string row(const std::string& label, const Prediction& p) { return row(label, p, p.run.timing, p.run.tokens_per_s); }

std::string advice(const SimulationReport& report) {
  const Prediction& now = report.simulated;
  const Prediction& best = *report.best;
  const double saved = now.run.timing.step_ms - best.run.timing.step_ms;
  std::vector<std::string> changes;
  const auto bucket = [](double mb) { return mb == 0 ? std::string("one for each unit") : fmt::format("{:.4g} MiB", mb); };
  if (best.bucket_mb != now.bucket_mb) changes.push_back(fmt::format("bucket {} -> {}", bucket(now.bucket_mb), bucket(best.bucket_mb)));
  if (best.prefetch != now.prefetch) changes.push_back(fmt::format("prefetch {} -> {}", now.prefetch, best.prefetch));
  // What no measurement would show is no advice.
  if (changes.empty() || saved < 0.005 * now.run.timing.step_ms)
    return "no bucket size and no prefetch depth would make this configuration faster\n";
  return fmt::format("{} would save {:.3f} ms of a step ({:.1f} %)\n", fmt::join(changes, ", "), saved,
                     100 * saved / now.run.timing.step_ms);
}

nlohmann::ordered_json timing_json(const StepTiming& t, double tokens) {
  return {{"step_ms", t.step_ms},
          {"compute_ms", t.compute_ms},
          {"exposed_ms", t.exposed_ms},
          {"other_ms", t.other_ms()},
          {"communication_ms", t.communication_ms},
          {"hidden_fraction", t.hidden_fraction()},
          {"tokens_per_s", tokens}};
}

nlohmann::ordered_json prediction_json(const Prediction& p) {
  nlohmann::ordered_json json = {{"ranks", p.ranks},
                                 {"batch", p.batch},
                                 {"stage", p.stage},
                                 {"bucket_mb", p.bucket_mb},
                                 {"collectives", p.collectives},
                                 {"prefetch", p.prefetch},
                                 {"overlap", p.overlap},
                                 {"link", p.network.inside.str()}};
  json["nodes"] = p.network.nodes;
  if (p.network.nodes > 1) json["inter_node_link"] = p.network.between.str();
  json.update(timing_json(p.run.timing, p.run.tokens_per_s));
  json["p10_step_ms"] = p.run.p10_step_ms;
  json["p90_step_ms"] = p.run.p90_step_ms;
  if (!p.notes.empty()) json["notes"] = p.notes;
  return json;
}

}  // namespace

std::string simulation_text(const RecordedRun& recorded, const SimulationReport& report) {
  std::string out =
      fmt::format("{}: {} recorded steps, replayed within {:.1f} %; collectives within {:.1f} % (median)\n", recorded.job.name(),
                  recorded.steps.front().size(), 100 * std::abs(replay_error(recorded, report)), 100 * recorded.message_error);
  if (recorded.fitted && recorded.ranks > 1)
    out += fmt::format("no links were emulated: as fitted to {} collectives they are {}\n", recorded.fitted->operations,
                       recorded.fitted->link.str());
  out += fmt::format("\n{}{}{}", header(), row("recorded", report.replayed, recorded.timing, tokens_per_s(recorded)),
                     row("simulated", report.simulated));
  if (report.best) out += row("best", *report.best);
  for (const std::string& note : report.simulated.notes) out += fmt::format("note: {}\n", note);
  if (report.best) out += advice(report);
  for (const Sweep& sweep : report.sweeps) {
    out += fmt::format("\nover {}\n{}", name(sweep.over), header());
    for (const SweepPoint& p : sweep.points) out += row(&p == &sweep.best() ? "most tokens" : "", p.prediction);
  }
  return out;
}

nlohmann::ordered_json simulation_json(const RecordedRun& recorded, const SimulationReport& report) {
  nlohmann::ordered_json json;
  json["name"] = recorded.job.name();
  json["recorded"] = timing_json(recorded.timing, tokens_per_s(recorded));
  json["recorded"]["ranks"] = recorded.ranks;
  json["recorded"]["steps"] = recorded.steps.front().size();
  json["fit"] = {{"replay_error", replay_error(recorded, report)}, {"collective_error", recorded.message_error},
                 {"issue_us", recorded.costs.issue_ns * 1e-3},     {"pickup_us", recorded.costs.pickup_ns * 1e-3},
                 {"wake_us", recorded.costs.wake_ns * 1e-3},       {"message_us", recorded.costs.message.message_ns * 1e-3},
                 {"byte_ns", recorded.costs.message.byte_ns}};
  if (recorded.fitted)
    json["fit"]["link"] = {{"latency_us", recorded.fitted->link.latency_s * 1e6},
                           {"bytes_per_s", recorded.fitted->link.bytes_per_s},
                           {"collectives", recorded.fitted->operations}};
  json["replayed"] = prediction_json(report.replayed);
  json["simulated"] = prediction_json(report.simulated);
  if (report.best) json["best"] = prediction_json(*report.best);
  json["sweeps"] = nlohmann::ordered_json::object();
  for (const Sweep& sweep : report.sweeps) {
    auto& rows = json["sweeps"][name(sweep.over)] = nlohmann::ordered_json::array();
    for (const SweepPoint& p : sweep.points) rows.push_back(prediction_json(p.prediction));
  }
  return json;
}

}  // namespace rz::tools
