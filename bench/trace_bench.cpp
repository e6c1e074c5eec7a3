// What recording costs: the time of each kind of entry, and the steps of a run that records every other one, as training.trace_steps 64
// and 0 would (on_over_off: the ratio of median step times, to +- error; events: entries in a step of rank 0).
// Other load on the machine disturbs more than recording does: measure on a quiet one.
#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/machine.h"
#include "comm/launch.h"
#include "runtime/core/rank_context.h"
#include "runtime/core/trace.h"
#include "tools/job_file.h"
#include "tools/session.h"
#include "tools/task.h"

namespace rz::bench {
namespace {

constexpr int kEvents = 1000;  // of a step

template <class F>
void entries(benchmark::State& state, const F& record) {
  trace::Recorder recorder(RankContext::current()->shared_memory(), 64);
  for (auto _ : state) {
    recorder.begin_step(0);
    for (int i = 0; i < kEvents; ++i) record(recorder, i);
    recorder.end_step();
  }
  state.counters["per_entry"] = benchmark::Counter(kEvents, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// With a sample of the ledger.
void activity(benchmark::State& state) {
  entries(state, [](trace::Recorder& r, int i) {
    const uint32_t unit = r.intern(i % 2 == 0 ? "blocks.0" : "blocks.1");
    r.set({trace::Activity::forward, unit});
  });
}
void ready(benchmark::State& state) {
  entries(state, [](trace::Recorder& r, int) { r.ready(r.intern("blocks.0.attention.query.weight")); });
}
// All that a collective leaves: its issue, its times from the progress thread, a wait.
void collective(benchmark::State& state) {
  entries(state, [](trace::Recorder& r, int) {
    static const std::vector<int> members = {0, 1};
    trace::Operation o;
    o.number = r.issue(0, members);
    r.log()->push(o);
    r.wait(o.number, steady_now_ns(), steady_now_ns(), 0);
  });
}
BENCHMARK(activity);
BENCHMARK(ready);
BENCHMARK(collective);

struct Median {
  double value = 0;
  double error = 0;  // half the width of its 95 % interval, which needs no assumption on the distribution
};
Median median(std::vector<double> values) {
  std::ranges::sort(values);
  const auto middle = static_cast<double>(values.size()) / 2;
  const auto at = [&](double i) { return values[static_cast<size_t>(std::clamp(i, 0.0, static_cast<double>(values.size() - 1)))]; };
  const double half = 0.98 * std::sqrt(static_cast<double>(values.size()));
  return {at(middle), (at(middle + half) - at(middle - half)) / 2};
}

// One session: two would differ in where their memory lies, by more than what is to be measured.
void disturbance(benchmark::State& state) {
  const int64_t pairs = state.range(1);
  const ringzero::Job job = tools::parse_job(fmt::format(R"(
    transformer {{ layers: 4 width: 64 heads: 4 context: 64 }}
    text {{}}
    training {{ steps: 1000000 batch: 8 threads: 1 trace_steps: 0 }}
    sharding {{ stage: {} }}
    schedule {{ kind: CONSTANT }})",
                                                         state.range(0)),
                                             "bench");
  std::vector<double> ms[2];
  size_t events = 0;
  for (auto _ : state) {
    comm::run_thread_ranks(2, {}, [&](comm::Communicator& comm) {
      tools::Session session(job, tools::make_task(job), comm);
      trace::Recorder recorder(RankContext::current()->shared_memory(), 64);
      const models::SampleRange samples = models::sample_range(job.training().batch(), comm.rank(), comm.size());
      for (int64_t step = 0; step < 2 * pairs; ++step) {
        const bool recording = (step + step / 2) % 2 != 0;  // off on on off: neither is always the second
        comm.barrier().wait();
        const int64_t begin = steady_now_ns();
        const trace::Attach attach(recording ? &recorder : nullptr);
        if (recording) recorder.begin_step(step);
        session.trainer().step(step, [&](int64_t) { return session.task().train_loss(step, samples, job.training().batch()); });
        session.sharded().settle();
        if (recording) recorder.end_step();
        if (comm.rank() == 0 && step >= 20) ms[recording ? 1 : 0].push_back(static_cast<double>(steady_now_ns() - begin) * 1e-6);
      }
      if (comm.rank() == 0) events = recorder.steps().back().events.size();
    });
  }
  // Neighbours in time share the machine's mood; steps minutes apart do not.
  std::vector<double> ratios;
  for (size_t pair = 0; pair < std::min(ms[0].size(), ms[1].size()); ++pair) ratios.push_back(ms[1][pair] / ms[0][pair]);
  const Median ratio = median(ratios);
  state.counters["off_ms"] = median(ms[0]).value;
  state.counters["on_ms"] = median(ms[1]).value;
  state.counters["on_over_off"] = ratio.value;
  state.counters["error"] = ratio.error;
  state.counters["events"] = static_cast<double>(events);
}
BENCHMARK(disturbance)->ArgNames({"stage", "pairs"})->Args({0, 1500})->Args({3, 1500})->Iterations(1)->Unit(benchmark::kSecond);

}  // namespace
}  // namespace rz::bench
