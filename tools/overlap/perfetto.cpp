#include "tools/overlap/perfetto.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_map>

#include "comm/types.h"

namespace rz::tools {

namespace {

using nlohmann::ordered_json;
using trace::Event;

enum Thread : int { kMain = 1, kWaits = 2, kCommunication = 3 };

class Writer {
 public:
  explicit Writer(const RunTrace& run) : run_(run) {
    origin_ns_ = std::numeric_limits<int64_t>::max();
    for (const RankTrace& t : run.ranks) origin_ns_ = std::min(origin_ns_, t.steps.front().begin_ns);
  }

  ordered_json write() {
    for (const RankTrace& t : run_.ranks) {
      metadata(t.rank, 0, "process_name", fmt::format("rank {} on {}", t.rank, t.host));
      metadata(t.rank, kMain, "thread_name", "compute");
      metadata(t.rank, kWaits, "thread_name", "waits");
      metadata(t.rank, kCommunication, "thread_name", "communication");
      for (const trace::Step& step : t.steps) write_step(t, step);
    }
    ordered_json json;
    json["traceEvents"] = std::move(events_);
    json["displayTimeUnit"] = "ms";
    return json;
  }

 private:
  double us(int64_t ns) const { return static_cast<double>(ns - origin_ns_) * 1e-3; }

  void metadata(int rank, int thread, const char* what, const std::string& name) {
    events_.push_back({{"ph", "M"}, {"pid", rank}, {"tid", thread}, {"name", what}, {"args", {{"name", name}}}});
  }

  void slice(int rank, int thread, const std::string& name, const char* category, int64_t begin_ns, int64_t end_ns,
             ordered_json arguments) {
    events_.push_back({{"ph", "X"},
                       {"pid", rank},
                       {"tid", thread},
                       {"name", name},
                       {"cat", category},
                       {"ts", us(begin_ns)},
                       {"dur", static_cast<double>(std::max<int64_t>(end_ns - begin_ns, 0)) * 1e-3},
                       {"args", std::move(arguments)}});
  }

  void flow(int rank, const char* phase, int thread, const std::string& id, int64_t at_ns) {
    ordered_json e = {{"ph", phase}, {"pid", rank}, {"tid", thread}, {"name", "gradient"}, {"cat", "flow"}, {"id", id}, {"ts", us(at_ns)}};
    if (*phase == 'f') e["bp"] = "e";  // ends in the slice around it
    events_.push_back(std::move(e));
  }

  void write_step(const RankTrace& t, const trace::Step& step) {
    slice(t.rank, kMain, fmt::format("step {}", step.step + 1), "step", step.begin_ns, step.end_ns, ordered_json::object());
    std::unordered_map<uint32_t, int64_t> ready_ns;  // by bucket
    std::unordered_map<int64_t, const trace::Operation*> operations;
    for (const trace::Operation& o : step.operations) operations[o.number] = &o;

    trace::Activity now = trace::Activity::other;
    uint32_t on = trace::kNoName;
    int64_t since = step.begin_ns;
    const auto finish = [&](int64_t until) {
      if (now == trace::Activity::other || until <= since) return;
      const std::string& what = t.names[on];
      slice(t.rank, kMain, what.empty() ? name(now) : fmt::format("{} {}", name(now), what), name(now), since, until,
            ordered_json::object());
    };
    for (const Event& e : step.events) {
      if (e.kind == Event::Kind::activity) {
        finish(e.begin_ns);
        now = e.activity;
        on = e.name;
        since = e.begin_ns;
      } else if (e.kind == Event::Kind::bucket_ready) {
        ready_ns[e.name] = e.begin_ns;
      } else if (e.kind == Event::Kind::wait && e.end_ns > e.begin_ns) {
        const auto found = operations.find(e.value);
        const std::string what = found != operations.end() ? t.names[found->second->name] : fmt::format("collective {}", e.value);
        slice(t.rank, kWaits, "wait " + what, "wait", e.begin_ns, e.end_ns, {{"operation", e.value}});
      }
    }
    finish(step.end_ns);

    for (const trace::Operation& o : step.operations) {
      const std::string id = fmt::format("{}.{}", t.rank, o.number);
      slice(t.rank, kCommunication, fmt::format("{} {}", comm::name(static_cast<comm::CollectiveKind>(o.kind)), t.names[o.name]),
            "communication", o.started_ns, o.done_ns,
            {{"operation", o.number},
             {"bytes", o.bytes},
             {"sent_bytes", o.sent_bytes},
             {"queued_us", us(o.queued_ns)},
             {"first_byte_us", o.first_byte_ns == 0 ? ordered_json() : ordered_json(us(o.first_byte_ns))},
             {"last_byte_us", o.last_byte_ns == 0 ? ordered_json() : ordered_json(us(o.last_byte_ns))}});
      // Ready -> reduction -> the wait that needs it, in front of the update.
      const auto ready = ready_ns.find(o.name);
      const bool gathers = static_cast<comm::CollectiveKind>(o.kind) == comm::CollectiveKind::all_gather;  // weights, named as their bucket
      if (gathers || ready == ready_ns.end() || ready->second > o.queued_ns) continue;
      flow(t.rank, "s", kMain, id, ready->second);
      if (const auto needed = needed_by(step, o.number)) {
        flow(t.rank, "t", kCommunication, id, o.started_ns);
        flow(t.rank, "f", kMain, id, *needed);
      } else {
        flow(t.rank, "f", kCommunication, id, o.started_ns);
      }
    }
    for (const trace::MemorySample& s : step.memory) {
      ordered_json bytes;
      for (size_t c = 0; c < kCategories; ++c) bytes[name(static_cast<Category>(c))] = s.bytes[c];
      events_.push_back({{"ph", "C"}, {"pid", t.rank}, {"name", "memory"}, {"ts", us(s.time_ns)}, {"args", std::move(bytes)}});
    }
  }

  // Where the optimizer first runs after the wait for an operation: there its result is used.
  static std::optional<int64_t> needed_by(const trace::Step& step, int64_t operation) {
    bool waited = false;
    for (const Event& e : step.events) {
      waited |= e.kind == Event::Kind::wait && e.value == operation;
      if (waited && e.kind == Event::Kind::activity && e.activity == trace::Activity::optimizer) return e.begin_ns;
    }
    return std::nullopt;
  }

  const RunTrace& run_;
  int64_t origin_ns_ = 0;
  ordered_json events_ = ordered_json::array();
};

}  // namespace

ordered_json perfetto_json(const RunTrace& run) { return Writer(run).write(); }

}  // namespace rz::tools
