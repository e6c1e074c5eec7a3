#include "tools/bench.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "runtime/core/allocator.h"
#include "runtime/core/host.h"
#include "runtime/core/op_profile.h"
#include "runtime/core/parallel.h"
#include "runtime/core/rank_context.h"
#include "runtime/kernels/cpu/peak.h"
#include "runtime/kernels/cpu/rounding.h"
#include "tools/autotune.h"
#include "tools/compute.h"
#include "tools/job_auto.h"
#include "tools/progress.h"
#include "tools/resident.h"
#include "tools/run_summary.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

constexpr int64_t kPeaks = 20;  // measured, at most about so many times, between steps
constexpr double kListedShare = 0.002;  // of the step; smaller ops are listed together

double percentile(const std::vector<double>& sorted, double part) {
  return sorted[static_cast<size_t>(part * static_cast<double>(sorted.size() - 1) + 0.5)];
}

nlohmann::ordered_json times(const std::vector<double>& each) {
  std::vector<double> sorted = each;
  std::ranges::sort(sorted);
  return {{"median", percentile(sorted, 0.5)}, {"p10", percentile(sorted, 0.1)}, {"p90", percentile(sorted, 0.9)}, {"min", sorted.front()}, {"each", each}};
}

struct Timed {
  std::string name;
  OpProfile::Phase phase;
  OpProfile::Entry entry;
};

class Bench {
 public:
  Bench(const ringzero::Job& job, const BenchOptions& options, comm::Communicator& comm)
      : options_(options), comm_(comm), job_(prepared(job)), baseline_bytes_(resident_bytes()), session_(job_, make_task_of_rank(job_, comm), comm) {}

  void execute() {
    for (int64_t step = 0; step < options_.warmup; ++step) session_.train_step(step);
    measure_peaks();
    const int64_t allocations = allocator::stats().system_allocations;
    OpProfile profile;
    for (int64_t done = 0; done < options_.steps; ++done) {
      train_step(options_.warmup + done, profile);
      if ((done + 1) % cpu::ceil_divide(options_.steps, kPeaks) == 0 && done + 1 < options_.steps) measure_peaks();
    }
    system_allocations_ = allocator::stats().system_allocations - allocations;
    measure_peaks();
    session_.meter().finish();
    nlohmann::ordered_json json = report();
    add_rank_summaries(json, session_, comm_, baseline_bytes_);
    if (comm_.rank() != 0) return;
    if (options_.json) fmt::print("{}\n", json.dump(2));
    else print(json);
  }

 private:
  ringzero::Job prepared(ringzero::Job job) {
    if (job.sharding().bucket_mb() == kAuto) job.mutable_sharding()->set_bucket_mb(tune_bucket(job, comm_).bucket_mb);
    job.mutable_training()->set_steps(options_.warmup + options_.steps);
    // The activities of the profile come from the recorder.
    job.mutable_training()->set_trace_steps(std::max<int64_t>(1, job.training().trace_steps()));
    return job;
  }

  // Not during a step, and of all ranks at once: cores, caches and memory are shared then as they are in a step.
  void measure_peaks() {
    const optim::StepMeter::Pause pause(session_.meter());
    double peak = cpu::matmul_peak();
    comm_.all_reduce(&peak, 1, DType::f64, comm::ReduceOp::sum, {.name = "matmul peak"}).wait();
    matmul_peaks_.push_back(peak);
    if (comm_.rank() == 0)
      multiply_add_peak_ = cpu::multiply_add_peak(std::min(comm_.size() * thread_count(), static_cast<int>(std::thread::hardware_concurrency())));
    comm_.barrier().wait();
  }

  void train_step(int64_t step, OpProfile& profile) {
    const OpProfile::Attach attach(&profile);
    profile.restart();
    const int64_t start = steady_now_ns(), start_of_processor = thread_cpu_ns();
    items_ += session_.train_step(step).items;
    profile.ended("step", OpProfile::Phase::other);
    step_ms_.push_back(to_ms(steady_now_ns() - start));
    processor_ms_.push_back(to_ms(thread_cpu_ns() - start_of_processor));
    for (const auto& [key, entry] : profile.entries()) {
      OpProfile::Entry& sum = total_[key];
      sum.calls += entry.calls;
      sum.ns += entry.ns;
      sum.flops += entry.flops;
      if (key.second != OpProfile::Phase::recompute) flops_ += entry.flops;
    }
  }

  nlohmann::ordered_json report() {
    double flops = flops_;
    comm_.all_reduce(&flops, 1, DType::f64, comm::ReduceOp::sum, {.name = "flops"}).wait();
    const auto steps = static_cast<double>(options_.steps);
    const nlohmann::ordered_json step_ms = times(step_ms_);
    const double median_s = 1e-3 * step_ms["median"].get<double>();
    flops /= steps;
    nlohmann::ordered_json json;
    json["name"] = job_.name();
    json["ranks"] = comm_.size();
    json["threads"] = thread_count();
    json["stage"] = job_.sharding().stage();
    json["steps"] = options_.steps;
    json["step_ms"] = step_ms;
    json["processor_ms"] = times(processor_ms_);
    json["items"] = session_.task().item_name();
    json["items_per_step"] = static_cast<double>(items_) / steps;
    json["items_per_s"] = static_cast<double>(items_) / steps / median_s;
    json["flops_per_step"] = flops;
    json["gflops"] = 1e-9 * flops / median_s;
    // The step's speed is a median, so this is: the machine is no slower for one than for the other.
    const double matmul_peak = times(matmul_peaks_)["median"].get<double>();
    json["products"] = products_name();
    json["matmul_peak_gflops"] = matmul_peak;
    json["multiply_add_peak_gflops"] = multiply_add_peak_;
    json["model_flop_utilization"] = 1e-9 * flops / median_s / matmul_peak;
    json["of_multiply_add_peak"] = 1e-9 * flops / median_s / multiply_add_peak_;
    json["system_allocations_per_step"] = static_cast<double>(system_allocations_) / steps;
    for (const Timed& op : ops())
      json["ops"].push_back({{"op", op.name},
                             {"phase", name(op.phase)},
                             {"calls_per_step", static_cast<double>(op.entry.calls) / steps},
                             {"ms_per_step", to_ms(op.entry.ns) / steps},
                             {"gflop_per_step", 1e-9 * op.entry.flops / steps}});
    return json;
  }

  // The longest first.
  std::vector<Timed> ops() const {
    std::vector<Timed> ops;
    for (const auto& [key, entry] : total_) ops.push_back({std::string(key.first), key.second, entry});
    std::ranges::sort(ops, [](const Timed& a, const Timed& b) { return a.entry.ns > b.entry.ns; });
    return ops;
  }

  void print(const nlohmann::ordered_json& json) {
    const auto number = [&](const char* key) { return json[key].get<double>(); };
    const auto& ms = json["step_ms"];
    fmt::print("{}: {} parameters, {} ranks x {} threads, stage {}, {} steps after {} to warm up\n", job_.name(),
               format_quantity(json["parameters"].get<double>()), comm_.size(), thread_count(), job_.sharding().stage(), options_.steps, options_.warmup);
    fmt::print("step        {:.2f} ms median, {:.2f} to {:.2f} from the 10th to the 90th percentile\n", ms["median"].get<double>(),
               ms["p10"].get<double>(), ms["p90"].get<double>());
    fmt::print("rate        {} {}/s\n", format_quantity(number("items_per_s")), session_.task().item_name());
    fmt::print("arithmetic  {:.2f} GFLOP a step, {:.1f} GFLOP/s: {:.1f} % of matrix products here ({:.1f}), {:.1f} % of multiply-adds ({:.1f})\n",
               1e-9 * number("flops_per_step"), number("gflops"), 100 * number("model_flop_utilization"), number("matmul_peak_gflops"),
               100 * number("of_multiply_add_peak"), multiply_add_peak_);
    fmt::print("memory      {} bytes at the peak of the fullest rank, {:.2f} requests to the system a step\n\n", format_quantity(number("peak_bytes")),
               number("system_allocations_per_step"));
    fmt::print("{:<28}{:<11}{:>9}{:>11}{:>8}{:>11}\n", "op (rank 0)", "phase", "calls", "ms/step", "%", "GFLOP/s");
    double sum_ns = 0;
    for (const auto& [key, entry] : total_) sum_ns += static_cast<double>(entry.ns);
    const auto steps = static_cast<double>(options_.steps);
    Timed rest{"(all others)", OpProfile::Phase::other, {}};
    const auto line = [&](const Timed& op) {
      const auto ns = static_cast<double>(op.entry.ns);
      fmt::print("{:<28}{:<11}{:>9.1f}{:>11.3f}{:>8.1f}{:>11}\n", op.name, name(op.phase), static_cast<double>(op.entry.calls) / steps, 1e-6 * ns / steps,
                 100 * ns / sum_ns, op.entry.flops > 0 ? fmt::format("{:.1f}", op.entry.flops / ns) : "");
    };
    for (const Timed& op : ops()) {
      if (static_cast<double>(op.entry.ns) >= kListedShare * sum_ns) {
        line(op);
        continue;
      }
      rest.entry.calls += op.entry.calls;
      rest.entry.ns += op.entry.ns;
      rest.entry.flops += op.entry.flops;
    }
    if (rest.entry.calls > 0) line(rest);
  }

  BenchOptions options_;
  comm::Communicator& comm_;
  ringzero::Job job_;
  int64_t baseline_bytes_;
  Session session_;

  std::vector<double> step_ms_;
  std::vector<double> processor_ms_;  // of this rank's main thread
  OpProfile::Entries total_;
  double flops_ = 0;  // of this rank's counted steps
  int64_t items_ = 0;
  int64_t system_allocations_ = 0;
  std::vector<double> matmul_peaks_;
  double multiply_add_peak_ = 0;
};

}  // namespace

void bench(const ringzero::Job& job, const BenchOptions& options, comm::Communicator& comm) {
  RZ_CONFIG_CHECK(options.steps >= 1 && options.warmup >= 0, "bench of {} steps after {} to warm up: at least 1 and 0", options.steps, options.warmup);
  PhaseScope phase(Phase::init);
  Bench(job, options, comm).execute();
}

}  // namespace rz::tools
