#include "tools/overlap/run_trace.h"

#include <algorithm>
#include <filesystem>

#include "runtime/core/error.h"

namespace rz::tools {

namespace {

void shift(RankTrace& t) {
  const int64_t by = t.clock_offset_ns;
  const auto move = [by](int64_t& time) {
    if (time != 0) time += by;  // 0 = never
  };
  for (trace::Step& step : t.steps) {
    for (int64_t* time : {&step.begin_ns, &step.end_ns}) move(*time);
    for (trace::Event& e : step.events) move(e.begin_ns), move(e.end_ns);
    for (trace::Operation& o : step.operations)
      for (int64_t* time : {&o.queued_ns, &o.started_ns, &o.first_byte_ns, &o.last_byte_ns, &o.done_ns}) move(*time);
    for (trace::MemorySample& s : step.memory) move(s.time_ns);
  }
}

}  // namespace

const trace::Step& RunTrace::at(int rank, int64_t step) const {
  const auto& kept = ranks.at(static_cast<size_t>(rank)).steps;
  const auto found = std::ranges::find(kept, step, &trace::Step::step);
  RZ_CHECK(found != kept.end(), "rank {} kept no step {}", rank, step);
  return *found;
}

std::vector<Stretch> stretches_of(const trace::Step& step) {
  std::vector<Stretch> stretches;
  Stretch now{.begin_ns = step.begin_ns};
  const auto finish = [&](int64_t end_ns) {
    now.end_ns = end_ns;
    if (now.end_ns != now.begin_ns) stretches.push_back(now);
  };
  for (const trace::Event& e : step.events) {
    if (e.kind == trace::Event::Kind::activity) {
      finish(e.begin_ns);
      now = {e.activity, e.name, e.begin_ns};
    } else if (e.kind == trace::Event::Kind::wait) {
      finish(e.begin_ns);
      now.begin_ns = e.end_ns;
    }
  }
  finish(step.end_ns);
  return stretches;
}

RunTrace join_traces(std::vector<RankTrace> ranks, const std::string& name) {
  RunTrace run;
  run.ranks = std::move(ranks);
  const RankTrace& first = run.ranks.front();
  for (int r = 0; r < run.size(); ++r) {
    const RankTrace& t = run.ranks[static_cast<size_t>(r)];
    RZ_CONFIG_CHECK(t.rank == r && t.size == run.size() && t.job_text == first.job_text, "{} is of rank {} of {} of another run",
                    trace_path(name, r), t.rank, t.size);
  }
  for (const trace::Step& step : first.steps) {
    const auto kept = [&](const RankTrace& t) { return std::ranges::find(t.steps, step.step, &trace::Step::step) != t.steps.end(); };
    if (std::ranges::all_of(run.ranks, kept)) run.steps.push_back(step.step);
  }
  RZ_CONFIG_CHECK(!run.steps.empty(), "the traces of {} share no step", name);
  for (RankTrace& t : run.ranks) shift(t);
  return run;
}

RunTrace read_run_trace(const std::string& run_path) {
  RZ_CONFIG_CHECK(std::filesystem::is_directory(trace_directory(run_path)),
                  "{} holds no trace: a run writes trace/ at its end when training.trace_steps is above 0", run_path);
  std::vector<RankTrace> ranks = {read_trace(trace_path(run_path, 0))};
  for (int r = 1; r < ranks.front().size; ++r) ranks.push_back(read_trace(trace_path(run_path, r)));
  return join_traces(std::move(ranks), run_path);
}

}  // namespace rz::tools
