// perfetto.json keeps the rules of the Trace Event Format (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU):
// what chrome://tracing and ui.perfetto.dev read.
#include "tools/overlap/perfetto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "tests/tools/tiny_run.h"

namespace rz::tools {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Perfetto = TinyRun;

// The first breach of a rule, in words; empty where there is none.
std::string breach(const json& trace) {
  constexpr double kRounding = 1e-3;  // us: times are written as doubles
  using Thread = std::pair<int, int>;
  struct Slice {
    double begin, end;
  };
  struct FlowPoint {
    std::string phase;
    double at;
    Thread thread;
  };
  std::map<Thread, std::vector<Slice>> slices;
  std::map<std::string, std::vector<FlowPoint>> flows;
  if (!trace.is_object() || !trace.contains("traceEvents") || !trace["traceEvents"].is_array()) return "no array traceEvents";
  for (const json& e : trace["traceEvents"]) {
    const auto is_number = [&](const char* key) { return e.contains(key) && e[key].is_number(); };
    if (!e.contains("ph") || !e["ph"].is_string()) return "no phase: " + e.dump();
    const std::string phase = e["ph"];
    if (phase.size() != 1 || std::string("XMCstf").find(phase) == std::string::npos) return "unknown phase: " + e.dump();
    if (!e.contains("name") || !e["name"].is_string() || e["name"].get<std::string>().empty()) return "no name: " + e.dump();
    if (!e.contains("pid") || !e["pid"].is_number_integer()) return "no process: " + e.dump();
    if (phase == "M") {
      if (e["name"] != "process_name" && e["name"] != "thread_name") return "unknown metadata: " + e.dump();
      if (!e.contains("args") || !e["args"].contains("name") || !e["args"]["name"].is_string()) return "metadata without a name: " + e.dump();
      continue;
    }
    if (!is_number("ts") || e["ts"].get<double>() < 0) return "no time: " + e.dump();
    const double at = e["ts"];
    if (phase == "C") {
      if (!e.contains("args") || e["args"].empty()) return "a counter without values: " + e.dump();
      for (const auto& [key, value] : e["args"].items())
        if (!value.is_number()) return "a counter that is no number: " + e.dump();
      continue;
    }
    if (!e.contains("tid") || !e["tid"].is_number_integer()) return "no thread: " + e.dump();
    const Thread thread = {e["pid"], e["tid"]};
    if (phase == "X") {
      if (!is_number("dur") || e["dur"].get<double>() < 0) return "no duration: " + e.dump();
      slices[thread].push_back({at, at + e["dur"].get<double>()});
      continue;
    }
    if (!e.contains("id") || !e.contains("cat")) return "an arrow without id or category: " + e.dump();
    if (phase == "f" && e.value("bp", "") != "e") return "an arrow that does not end in its slice: " + e.dump();
    flows[e["cat"].get<std::string>() + e["name"].get<std::string>() + e["id"].dump()].push_back({phase, at, thread});
  }
  for (auto& [thread, list] : slices) {
    std::ranges::stable_sort(list, [](const Slice& a, const Slice& b) { return a.begin != b.begin ? a.begin < b.begin : a.end > b.end; });
    std::vector<Slice> open;
    for (const Slice& s : list) {
      while (!open.empty() && open.back().end <= s.begin + kRounding) open.pop_back();
      if (!open.empty() && s.end > open.back().end + kRounding) return fmt::format("slices of thread {}.{} overlap at {} us", thread.first, thread.second, s.begin);
      open.push_back(s);
    }
  }
  for (const auto& [id, points] : flows) {
    if (points.size() < 2 || points.front().phase != "s" || points.back().phase != "f") return "an arrow without begin or end: " + id;
    for (size_t i = 0; i < points.size(); ++i) {
      const FlowPoint& p = points[i];
      if ((p.phase == "s") != (i == 0) || (p.phase == "f") != (i + 1 == points.size())) return "an arrow with two begins or ends: " + id;
      if (i + 1 < points.size() && p.at > points[i + 1].at) return "an arrow back in time: " + id;
      const auto holds = [&](const Slice& s) { return s.begin - kRounding <= p.at && p.at <= s.end + kRounding; };
      if (std::ranges::none_of(slices[p.thread], holds)) return "an arrow at no slice: " + id;
    }
  }
  return "";
}

json of_phase(const json& trace, const char* phase) {
  json found = json::array();
  for (const json& e : trace["traceEvents"])
    if (e["ph"] == phase) found.push_back(e);
  return found;
}

TEST_F(Perfetto, KeepsTheRulesInAllStages) {
  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(stage);
    const RunTrace run = read_run_trace(train_tiny(fmt::format("s{}", stage), 3, {fmt::format("sharding.stage={}", stage), "training.accumulate=2"}, "2Gbit,20us"));
    const json trace = json::parse(perfetto_json(run).dump());
    EXPECT_EQ(breach(trace), "");
    EXPECT_EQ(of_phase(trace, "M").size(), 3u * 4);  // a process and three threads for each rank
    // Every bucket's reduction in every step has its arrow, from the gradients to the update.
    const size_t arrows = 3 * 5 * 4;
    EXPECT_EQ(of_phase(trace, "s").size(), arrows);
    EXPECT_EQ(of_phase(trace, "f").size(), arrows);
    size_t collectives = 0, waits = 0, samples = 0;
    for (const RankTrace& t : run.ranks)
      for (const trace::Step& step : t.steps) {
        collectives += step.operations.size();
        samples += step.memory.size();
        for (const trace::Event& e : step.events) waits += e.kind == trace::Event::Kind::wait && e.end_ns > e.begin_ns;
      }
    std::map<std::string, size_t> slices;
    for (const json& e : of_phase(trace, "X")) ++slices[e["cat"]];
    EXPECT_EQ(slices["communication"], collectives);
    EXPECT_EQ(slices["wait"], waits);
    EXPECT_EQ(slices["step"], 3u * 5);
    EXPECT_GT(slices["forward"], 0u);
    EXPECT_GT(slices["backward"], 0u);
    EXPECT_GT(slices["optimizer"], 0u);
    EXPECT_EQ(of_phase(trace, "C").size(), samples);
  }
}

// What the checker itself must see.
TEST_F(Perfetto, TheCheckSeesBreaches) {
  const json good = json::parse(perfetto_json(read_run_trace(train_tiny("a", 2))).dump());
  ASSERT_EQ(breach(good), "");
  const auto first = [](json& trace, const char* phase) -> json& {
    for (json& e : trace["traceEvents"])
      if (e["ph"] == phase) return e;
    throw std::runtime_error("no such event");
  };
  const struct {
    const char* says;
    std::function<void(json&)> change;
  } cases[] = {
      {"no array", [](json& t) { t["traceEvents"] = 1; }},
      {"unknown phase", [&](json& t) { first(t, "X")["ph"] = "x"; }},
      {"no name", [&](json& t) { first(t, "C").erase("name"); }},
      {"no process", [&](json& t) { first(t, "X")["pid"] = "0"; }},
      {"no thread", [&](json& t) { first(t, "X").erase("tid"); }},
      {"no time", [&](json& t) { first(t, "X")["ts"] = -1; }},
      {"no duration", [&](json& t) { first(t, "X")["dur"] = -0.5; }},
      {"overlap", [&](json& t) { first(t, "X")["dur"] = first(t, "X")["dur"].get<double>() * 1.5; }},
      {"a counter that is no number", [&](json& t) { first(t, "C")["args"]["gradient"] = "1"; }},
      {"a counter without", [&](json& t) { first(t, "C")["args"].clear(); }},
      {"metadata without", [&](json& t) { first(t, "M")["args"].erase("name"); }},
      {"an arrow without begin or end", [&](json& t) { first(t, "f")["id"] = "other"; }},
      {"an arrow back in time", [&](json& t) { first(t, "s")["ts"] = 1e9; }},
      {"an arrow at no slice", [&](json& t) { first(t, "s")["tid"] = 77; }},
      {"does not end in its slice", [&](json& t) { first(t, "f").erase("bp"); }},
  };
  for (const auto& c : cases) {
    json bad = good;
    c.change(bad);
    EXPECT_THAT(breach(bad), HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace rz::tools
