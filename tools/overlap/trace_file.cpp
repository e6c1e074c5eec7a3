#include "tools/overlap/trace_file.h"

#include <xxhash.h>

#include <fstream>
#include <iterator>
#include <thread>

#include "comm/types.h"
#include "proto/trace.pb.h"
#include "runtime/core/error.h"
#include "runtime/core/host.h"
#include "runtime/core/parallel.h"
#include "tools/atomic_file.h"
#include "tools/job_file.h"

namespace rz::tools {

namespace {

constexpr int64_t kFormatVersion = 3;
namespace message = ringzero::trace;

void pack(const trace::Step& step, message::Step& m) {
  m.set_step(step.step);
  m.set_begin_ns(step.begin_ns);
  m.set_end_ns(step.end_ns);
  m.set_cpu_ns(step.cpu_ns);
  auto& events = *m.mutable_events();
  for (const trace::Event& e : step.events) {
    events.add_kind(static_cast<uint32_t>(e.kind));
    events.add_activity(static_cast<uint32_t>(e.activity));
    events.add_name(e.name);
    events.add_begin_ns(e.begin_ns - step.begin_ns);
    events.add_end_ns(e.end_ns - step.begin_ns);
    events.add_value(e.value);
  }
  auto& operations = *m.mutable_operations();
  for (const trace::Operation& o : step.operations) {
    operations.add_number(o.number);
    operations.add_name(o.name);
    operations.add_kind(o.kind);
    operations.add_order(o.order);
    operations.add_group(o.group);
    operations.add_sequence(o.sequence);
    operations.add_bytes(o.bytes);
    operations.add_sent_bytes(o.sent_bytes);
    operations.add_queued_ns(o.queued_ns - step.begin_ns);
    operations.add_started_ns(o.started_ns - step.begin_ns);
    operations.add_first_byte_ns(o.first_byte_ns - step.begin_ns);
    operations.add_last_byte_ns(o.last_byte_ns - step.begin_ns);
    operations.add_done_ns(o.done_ns - step.begin_ns);
    operations.add_cpu_ns(o.cpu_ns);
  }
  auto& memory = *m.mutable_memory();
  for (const trace::MemorySample& s : step.memory) {
    memory.add_time_ns(s.time_ns - step.begin_ns);
    for (const int64_t bytes : s.bytes) memory.add_bytes(bytes);
  }
}

// A table whose columns must be of one length.
class Table {
 public:
  Table(const std::string& path, const char* what, int rows) : path_(path), what_(what), rows_(rows) {}
  template <class... Columns>
  void check(const Columns&... columns) const {
    RZ_CONFIG_CHECK(((columns.size() == rows_) && ...), "{} is damaged: its {} have columns of different lengths", path_, what_);
  }
  int rows() const { return rows_; }

 private:
  const std::string& path_;
  const char* what_;
  int rows_;
};

trace::Step unpack(const std::string& path, const message::Step& m, size_t names) {
  trace::Step step;
  step.step = m.step();
  step.begin_ns = m.begin_ns();
  step.end_ns = m.end_ns();
  step.cpu_ns = m.cpu_ns();
  const auto check_name = [&](uint32_t name) { RZ_CONFIG_CHECK(name < names, "{} is damaged: name {} of {}", path, name, names); };
  const auto& e = m.events();
  const Table events(path, "events", e.kind_size());
  events.check(e.activity(), e.name(), e.begin_ns(), e.end_ns(), e.value());
  for (int i = 0; i < events.rows(); ++i) {
    check_name(e.name(i));
    RZ_CONFIG_CHECK(e.kind(i) <= static_cast<uint32_t>(trace::Event::Kind::bucket_ready) && e.activity(i) < trace::kActivities,
                    "{} is damaged: event of kind {}, activity {}", path, e.kind(i), e.activity(i));
    step.events.push_back({static_cast<trace::Event::Kind>(e.kind(i)), static_cast<trace::Activity>(e.activity(i)), e.name(i),
                           e.begin_ns(i) + step.begin_ns, e.end_ns(i) + step.begin_ns, e.value(i)});
  }
  const auto& o = m.operations();
  const Table operations(path, "operations", o.number_size());
  operations.check(o.name(), o.kind(), o.order(), o.group(), o.sequence(), o.bytes(), o.sent_bytes(), o.queued_ns(), o.started_ns(),
                   o.first_byte_ns(), o.last_byte_ns(), o.done_ns(), o.cpu_ns());
  for (int i = 0; i < operations.rows(); ++i) {
    check_name(o.name(i));
    RZ_CONFIG_CHECK(o.kind(i) < static_cast<uint32_t>(comm::kCollectiveKinds), "{} is damaged: collective of kind {}", path, o.kind(i));
    step.operations.push_back({o.number(i), o.name(i), static_cast<uint8_t>(o.kind(i)), static_cast<uint8_t>(o.order(i)), o.group(i),
                               o.sequence(i), o.bytes(i), o.sent_bytes(i), o.queued_ns(i) + step.begin_ns, o.started_ns(i) + step.begin_ns,
                               o.first_byte_ns(i) + step.begin_ns, o.last_byte_ns(i) + step.begin_ns, o.done_ns(i) + step.begin_ns,
                               o.cpu_ns(i)});
  }
  const auto& s = m.memory();
  RZ_CONFIG_CHECK(s.bytes_size() == s.time_ns_size() * static_cast<int>(kCategories), "{} is damaged: {} bytes for {} samples of memory",
                  path, s.bytes_size(), s.time_ns_size());
  for (int i = 0; i < s.time_ns_size(); ++i) {
    trace::MemorySample sample{s.time_ns(i) + step.begin_ns, {}};
    for (size_t c = 0; c < kCategories; ++c) sample.bytes[c] = s.bytes(i * static_cast<int>(kCategories) + static_cast<int>(c));
    step.memory.push_back(sample);
  }
  return step;
}

}  // namespace

std::string trace_directory(const std::string& run_path) { return run_path + "/trace"; }
std::string trace_path(const std::string& run_path, int rank) {
  return fmt::format("{}/rank-{:05}.trace", trace_directory(run_path), rank);
}

RankTrace rank_trace_of(const trace::Recorder& recorder) {
  RankTrace t;
  t.names = recorder.names();
  t.groups = recorder.groups();
  t.steps.assign(recorder.steps().begin(), recorder.steps().end());
  t.dropped = recorder.dropped();
  return t;
}

RankTrace own_trace(trace::Recorder& recorder, const comm::Communicator& comm, const comm::ProbeResult& probe, const ringzero::Job& job) {
  recorder.collect();
  RankTrace t = rank_trace_of(recorder);
  t.rank = comm.rank();
  t.size = comm.size();
  t.threads = thread_count();
  t.cores = static_cast<int>(std::thread::hardware_concurrency());
  t.host = host_name();
  t.clock_offset_ns = probe.clock_offset_ns;
  t.clock_error_ns = probe.clock_error_ns;
  t.probe = {probe.latency_ns, probe.bytes_per_s};
  t.job_text = effective_text(job);
  return t;
}

std::string pack_trace(const RankTrace& trace) {
  message::RankTrace m;
  m.set_format_version(kFormatVersion);
  m.set_rank(trace.rank);
  m.set_size(trace.size);
  m.set_threads(trace.threads);
  m.set_cores(trace.cores);
  m.set_host(trace.host);
  m.set_clock_offset_ns(trace.clock_offset_ns);
  m.set_clock_error_ns(trace.clock_error_ns);
  m.set_job_text(trace.job_text);
  for (const std::string& name : trace.names) m.add_names(name);
  for (const auto& [id, members] : trace.groups) {
    auto& group = *m.add_groups();
    group.set_id(id);
    for (const int member : members) group.add_members(member);
  }
  for (const trace::Step& step : trace.steps) pack(step, *m.add_steps());
  m.set_dropped(trace.dropped);
  m.mutable_probe()->set_latency_ns(trace.probe.latency_ns);
  m.mutable_probe()->set_bytes_per_s(trace.probe.bytes_per_s);
  message::TraceFile file;
  file.set_trace(m.SerializeAsString());
  file.set_trace_xxh64(XXH64(file.trace().data(), file.trace().size(), 0));
  return file.SerializeAsString();
}

void write_trace(const std::string& path, const RankTrace& trace) { write_file_atomically(path, pack_trace(trace)); }

RankTrace read_trace(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  RZ_CONFIG_CHECK(in.good(), "{} cannot be read: a trace is written at the end of a run whose job has training.trace_steps above 0", path);
  return unpack_trace({std::istreambuf_iterator<char>(in), {}}, path);
}

RankTrace unpack_trace(const std::string& bytes, const std::string& path) {
  message::TraceFile file;
  RZ_CONFIG_CHECK(file.ParseFromString(bytes) && file.has_trace(), "{} is no trace, or is cut short ({} bytes)", path, bytes.size());
  RZ_CONFIG_CHECK(file.trace_xxh64() == XXH64(file.trace().data(), file.trace().size(), 0), "{} is damaged: its checksum does not match",
                  path);
  message::RankTrace m;
  RZ_CONFIG_CHECK(m.ParseFromString(file.trace()), "{} is damaged: it cannot be parsed", path);
  RZ_CONFIG_CHECK(m.format_version() == kFormatVersion, "{} has format {}, this program reads {}", path, m.format_version(),
                  kFormatVersion);
  RankTrace t;
  t.rank = static_cast<int>(m.rank());
  t.size = static_cast<int>(m.size());
  t.threads = static_cast<int>(m.threads());
  t.cores = static_cast<int>(m.cores());
  t.host = m.host();
  t.clock_offset_ns = m.clock_offset_ns();
  t.clock_error_ns = m.clock_error_ns();
  t.job_text = m.job_text();
  t.names.assign(m.names().begin(), m.names().end());
  for (const auto& group : m.groups()) {
    auto& members = t.groups[group.id()];
    for (const int64_t member : group.members()) members.push_back(static_cast<int>(member));
  }
  RZ_CONFIG_CHECK(t.rank >= 0 && t.rank < t.size, "{} is damaged: it is of rank {} of {}", path, t.rank, t.size);
  for (const auto& step : m.steps()) {
    RZ_CONFIG_CHECK(step.end_ns() >= step.begin_ns(), "{} is damaged: step {} ends before it begins", path, step.step());
    RZ_CONFIG_CHECK(t.steps.empty() || step.step() > t.steps.back().step, "{} is damaged: step {} follows step {}", path, step.step(),
                    t.steps.back().step);
    t.steps.push_back(unpack(path, step, t.names.size()));
  }
  t.dropped = m.dropped();
  t.probe = {m.probe().latency_ns(), m.probe().bytes_per_s()};
  return t;
}

}  // namespace rz::tools
