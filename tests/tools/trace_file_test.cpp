// Trace files: what is written is read; what is damaged, foreign or of another run is an error that names the file.
#include "tools/overlap/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <functional>

#include "proto/trace.pb.h"
#include "runtime/core/error.h"
#include "tests/support/config_error.h"
#include "tests/tools/synthetic_trace.h"
#include "tests/tools/tiny_run.h"
#include "tools/overlap/run_trace.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using TraceFile = TinyRun;

RankTrace example() {
  SyntheticTrace trace(3);
  trace.activity(1, 0, trace::Activity::forward, "blocks.0");
  trace.bucket_ready(1, 7, "blocks.0");
  trace.wait(1, 10, 20, trace.collective(1, comm::CollectiveKind::all_reduce, "blocks.0", 7, 8, 19));
  RankTrace t = trace.run().ranks[1];
  t.threads = 2;
  t.cores = 5;
  t.host = "node-7";
  t.clock_offset_ns = -1234567890123;
  t.clock_error_ns = 77;
  t.job_text = "name: \"example\"";
  t.groups = {{0, {0, 1, 2}}, {9, {1}}};
  t.dropped = 4;
  t.probe = {5000, 1.25e8};
  trace::Operation& o = t.steps[1].operations[0];
  o.order = 1;
  o.group = 9;
  o.first_byte_ns = 0;  // never
  o.cpu_ns = 2500;
  o.last_byte_ns = o.done_ns - 1;
  t.steps[1].cpu_ns = 54321;
  trace::MemorySample sample{t.steps[1].begin_ns + 3, {}};
  for (size_t c = 0; c < kCategories; ++c) sample.bytes[c] = static_cast<int64_t>(c) << 40;
  t.steps[1].memory = {sample, sample};
  return t;
}

void expect_equal(const RankTrace& a, const RankTrace& b) {
  EXPECT_EQ(std::tie(a.rank, a.size, a.threads, a.cores, a.host, a.clock_offset_ns, a.clock_error_ns, a.job_text, a.names, a.groups, a.dropped),
            std::tie(b.rank, b.size, b.threads, b.cores, b.host, b.clock_offset_ns, b.clock_error_ns, b.job_text, b.names, b.groups, b.dropped));
  EXPECT_EQ(a.probe.latency_ns, b.probe.latency_ns);
  EXPECT_EQ(a.probe.bytes_per_s, b.probe.bytes_per_s);
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (size_t i = 0; i < a.steps.size(); ++i) {
    const trace::Step &s = a.steps[i], &t = b.steps[i];
    EXPECT_EQ(std::tie(s.step, s.begin_ns, s.end_ns, s.cpu_ns), std::tie(t.step, t.begin_ns, t.end_ns, t.cpu_ns));
    ASSERT_EQ(s.events.size(), t.events.size());
    for (size_t j = 0; j < s.events.size(); ++j) {
      const trace::Event &e = s.events[j], &f = t.events[j];
      EXPECT_EQ(std::tie(e.kind, e.activity, e.name, e.begin_ns, e.end_ns, e.value), std::tie(f.kind, f.activity, f.name, f.begin_ns, f.end_ns, f.value));
    }
    ASSERT_EQ(s.operations.size(), t.operations.size());
    for (size_t j = 0; j < s.operations.size(); ++j) {
      const trace::Operation &o = s.operations[j], &p = t.operations[j];
      EXPECT_EQ(std::tie(o.number, o.name, o.kind, o.order, o.group, o.sequence, o.bytes, o.sent_bytes, o.queued_ns, o.started_ns, o.first_byte_ns, o.last_byte_ns, o.done_ns, o.cpu_ns),
                std::tie(p.number, p.name, p.kind, p.order, p.group, p.sequence, p.bytes, p.sent_bytes, p.queued_ns, p.started_ns, p.first_byte_ns, p.last_byte_ns, p.done_ns, p.cpu_ns));
    }
    ASSERT_EQ(s.memory.size(), t.memory.size());
    for (size_t j = 0; j < s.memory.size(); ++j) {
      EXPECT_EQ(s.memory[j].time_ns, t.memory[j].time_ns);
      EXPECT_EQ(s.memory[j].bytes, t.memory[j].bytes);
    }
  }
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void put(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

using test::config_error;

TEST_F(TraceFile, WhatIsWrittenIsRead) {
  const RankTrace t = example();
  write_trace(path("a.trace"), t);
  expect_equal(read_trace(path("a.trace")), t);
}

TEST_F(TraceFile, ShortenedOrChangedAnywhereItIsRefused) {
  const std::string file = path("a.trace");
  write_trace(file, example());
  const std::string whole = bytes_of(file);
  ASSERT_GT(whole.size(), 300u);
  const auto expect_refused = [&](const std::string& bytes, size_t at) {
    put(file, bytes);
    EXPECT_THAT(config_error([&] { read_trace(file); }), HasSubstr(file)) << "at byte " << at << " of " << whole.size();
  };
  for (size_t length = 0; length < whole.size(); ++length) expect_refused(whole.substr(0, length), length);
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << at % 8));
    expect_refused(bytes, at);
  }
  expect_refused(whole + "more", whole.size());
}

TEST_F(TraceFile, AnotherFileIsNoTrace) {
  const std::string file = path("a.trace");
  for (const std::string& bytes : {std::string("{\"traceEvents\": []}"), std::string("\x89PNG\r\n\x1a\n"), std::string(4096, '\0')}) {
    put(file, bytes);
    EXPECT_THAT(config_error([&] { read_trace(file); }), AllOf(HasSubstr(file), HasSubstr("no trace")));
  }
  fs::remove(file);
  EXPECT_THAT(config_error([&] { read_trace(file); }), AllOf(HasSubstr(file), HasSubstr("training.trace_steps")));
}

// Whole files whose contents contradict themselves.
TEST_F(TraceFile, InconsistentContentsAreNamed) {
  using Message = ringzero::trace::RankTrace;
  const std::string file = path("a.trace");
  write_trace(file, example());
  ringzero::trace::TraceFile whole;
  ASSERT_TRUE(whole.ParseFromString(bytes_of(file)));
  const auto refusal = [&](const std::function<void(Message&)>& change) {
    Message m;
    m.ParseFromString(whole.trace());
    change(m);
    ringzero::trace::TraceFile changed;
    changed.set_trace(m.SerializeAsString());
    changed.set_trace_xxh64(XXH64(changed.trace().data(), changed.trace().size(), 0));
    put(file, changed.SerializeAsString());
    return test::config_error_if_any([&] { read_trace(file); });
  };
  EXPECT_EQ(refusal([](Message&) {}), "no error");
  const struct {
    const char* says;
    std::function<void(Message&)> change;
  } cases[] = {
      {"has format 1, this program reads 3", [](Message& m) { m.set_format_version(1); }},
      {"its events have columns of different lengths", [](Message& m) { m.mutable_steps(1)->mutable_events()->add_value(1); }},
      {"its operations have columns of different lengths", [](Message& m) { m.mutable_steps(1)->mutable_operations()->add_done_ns(1); }},
      {"name 3 of 2", [](Message& m) { m.mutable_steps(1)->mutable_events()->set_name(0, 3); }},
      {"name 7 of 2", [](Message& m) { m.mutable_steps(1)->mutable_operations()->set_name(0, 7); }},
      {"event of kind 5, activity", [](Message& m) { m.mutable_steps(1)->mutable_events()->set_kind(0, 5); }},
      {"activity 9", [](Message& m) { m.mutable_steps(1)->mutable_events()->set_activity(0, 9); }},
      {"collective of kind 6", [](Message& m) { m.mutable_steps(1)->mutable_operations()->set_kind(0, 6); }},
      {"15 bytes for 2 samples", [](Message& m) { m.mutable_steps(1)->mutable_memory()->mutable_bytes()->RemoveLast(); }},
      {"ends before it begins", [](Message& m) { m.mutable_steps(1)->set_end_ns(m.steps(1).begin_ns() - 1); }},
      {"step 1 follows step 1", [](Message& m) { m.mutable_steps(0)->set_step(1); }},
      {"rank 3 of 3", [](Message& m) { m.set_rank(3); }},
      {"rank 1 of 0", [](Message& m) { m.set_size(0); }},
  };
  for (const auto& c : cases) EXPECT_THAT(refusal(c.change), AllOf(HasSubstr(file), HasSubstr(c.says)));
}

TEST_F(TraceFile, TheTracesOfARunAreOnOneClock) {
  const auto run = path("run");
  fs::create_directories(trace_directory(run));
  SyntheticTrace trace(3);
  for (RankTrace& t : trace.run().ranks) {
    t.clock_offset_ns = -1000 * t.rank;
    // Read on its own clock.
    for (trace::Step& step : t.steps) {
      step.begin_ns -= t.clock_offset_ns;
      step.end_ns -= t.clock_offset_ns;
    }
    trace::Operation o;
    o.queued_ns = o.started_ns = o.done_ns = SyntheticTrace::ns(5) - t.clock_offset_ns;
    t.steps[1].operations.push_back(o);
    t.steps[1].events.push_back({.begin_ns = o.done_ns, .end_ns = o.done_ns});
    t.steps[1].memory.push_back({o.done_ns, {}});
    if (t.rank == 2) t.steps.push_back({.step = 2, .begin_ns = t.steps[1].end_ns, .end_ns = t.steps[1].end_ns, .events = {}, .operations = {}, .memory = {}});
    write_trace(trace_path(run, t.rank), t);
  }
  const RunTrace read = read_run_trace(run);
  EXPECT_EQ(read.steps, (std::vector<int64_t>{0, 1}));  // that all ranks kept
  for (int r = 0; r < 3; ++r) {
    const trace::Step& step = read.at(r, 1);
    EXPECT_EQ(step.begin_ns, SyntheticTrace::ns(0));
    EXPECT_EQ(step.end_ns, SyntheticTrace::ns(SyntheticTrace::kLength));
    EXPECT_EQ(step.operations[0].done_ns, SyntheticTrace::ns(5));
    EXPECT_EQ(step.operations[0].first_byte_ns, 0);  // never is never on any clock
    EXPECT_EQ(step.events[0].begin_ns, SyntheticTrace::ns(5));
    EXPECT_EQ(step.memory[0].time_ns, SyntheticTrace::ns(5));
  }
}

TEST_F(TraceFile, TracesThatDoNotBelongTogetherAreNamed) {
  const auto run = path("run");
  const auto refusal = [&] { return test::config_error_if_any([&] { read_run_trace(run); }); };
  EXPECT_THAT(refusal(), AllOf(HasSubstr(run), HasSubstr("training.trace_steps")));
  fs::create_directories(trace_directory(run));
  SyntheticTrace trace(3);
  const auto write_all = [&] {
    for (const RankTrace& t : trace.run().ranks) write_trace(trace_path(run, t.rank), t);
  };
  write_all();
  EXPECT_EQ(refusal(), "no error");
  fs::remove(trace_path(run, 2));
  EXPECT_THAT(refusal(), HasSubstr(trace_path(run, 2)));
  write_all();
  fs::copy_file(trace_path(run, 1), trace_path(run, 2), fs::copy_options::overwrite_existing);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(trace_path(run, 2)), HasSubstr("rank 1 of 3")));
  RankTrace other = trace.run().ranks[2];
  other.job_text = "seed: 2";
  write_trace(trace_path(run, 2), other);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(trace_path(run, 2)), HasSubstr("another run")));
  other = trace.run().ranks[2];
  for (trace::Step& step : other.steps) step.step += 10;
  write_trace(trace_path(run, 2), other);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(run), HasSubstr("share no step")));
}

}  // namespace
}  // namespace rz::tools
