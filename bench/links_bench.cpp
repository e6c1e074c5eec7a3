// Emulated links: an all-reduce's time against the closed form of its links (over_links, 1 is as fast as they permit), and the
// processor time of all ranks together while it runs (cpu, parts of one core), with main threads that wait, or compute (busy).
// Other load on the machine wakes ranks late.
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "bench/machine.h"
#include "comm/launch.h"

namespace rz::bench {
namespace {

double cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto s = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  return s(usage.ru_utime) + s(usage.ru_stime);
}

// Tens of microseconds.
void compute() {
  volatile double x = 1;
  for (int i = 0; i < 20'000; ++i) x = x * 1.0000001;
}

// The median over repetitions of the time from the last rank's call to the last rank's end.
void all_reduce(benchmark::State& state, const char* link) {
  constexpr size_t kRepetitions = 9;
  constexpr double kSegmentBytes = 256 * 1024;
  const int ranks = static_cast<int>(state.range(0));
  const double bytes = static_cast<double>(state.range(1)) * 1024 * 1024;
  const bool busy = state.range(2) != 0;
  const comm::NetworkSpec network = comm::parse_network(link);
  double seconds = 0, cpu = 0;
  for (auto _ : state) {
    std::array<std::atomic<int64_t>, kRepetitions> called{}, done{};
    const auto later = [](std::atomic<int64_t>& last, int64_t ns) {
      for (int64_t seen = last; seen < ns && !last.compare_exchange_weak(seen, ns);) {
      }
    };
    comm::run_thread_ranks(ranks, {.segment_bytes = static_cast<size_t>(kSegmentBytes), .network = network}, [&](comm::Communicator& comm) {
      std::vector<float> data(static_cast<size_t>(bytes) / sizeof(float));
      comm.barrier().wait();
      const double cpu_before = cpu_s();
      const int64_t begin = steady_now_ns();
      for (size_t i = 0; i < kRepetitions; ++i) {
        const comm::Work work = comm.all_reduce(data.data(), data.size(), DType::f32, comm::ReduceOp::sum);
        while (busy && !work.done()) compute();
        work.wait();
        later(called[i], work.times().queued_ns);
        later(done[i], work.times().done_ns);
      }
      comm.barrier().wait();
      if (comm.rank() == 0) cpu = (cpu_s() - cpu_before) / static_cast<double>(steady_now_ns() - begin) * 1e9;
    });
    std::vector<int64_t> times;
    for (size_t i = 0; i < kRepetitions; ++i) times.push_back(done[i] - called[i]);
    std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
    seconds = static_cast<double>(times[kRepetitions / 2]) * 1e-9;
    state.SetIterationTime(seconds);
  }
  // The fingerprint takes a latency of its own.
  const double least = network.inside.latency_s + comm::ring_pass_s(network.inside, 2 * (ranks - 1), bytes / ranks, kSegmentBytes);
  state.counters["over_links"] = seconds / least;
  state.counters["cpu"] = cpu;
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"ranks", "MiB", "busy"})->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1);
  for (const int64_t ranks : {2, 4})
    for (const int64_t mib : {1, 16})
      for (const int64_t busy : {0, 1}) b->Args({ranks, mib, busy});
}
BENCHMARK_CAPTURE(all_reduce, 1Gbit_50us, "1Gbit,50us")->Apply(sizes);
BENCHMARK_CAPTURE(all_reduce, 10Gbit_50us, "10Gbit,50us")->Apply(sizes);

}  // namespace
}  // namespace rz::bench
