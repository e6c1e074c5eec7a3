#include "tools/overlap/recorded_run.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "models/data/batch.h"
#include "runtime/core/error.h"
#include "tools/job_file.h"
#include "tools/overlap/account.h"
#include "tools/overlap/network_fit.h"
#include "tools/overlap/quantile.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

using trace::Event;

constexpr int64_t kWarmUpSteps = 2;
constexpr double kLongGap = 5;  // medians; what is longer was an evaluation or a checkpoint, not the way from a step to the next

// How much of a core's time a rank had between two moments. On a machine without a spare core, progress threads take theirs from those
// that compute, and where more threads compute than there are cores, these take turns, evenly.
class CoreTime {
 public:
  // `ranks`: of one machine.
  CoreTime(const RunTrace& trace, const std::vector<int>& ranks, int threads, int cores) {
    const int most = static_cast<int>(ranks.size()) * threads;
    if (most < cores) return;
    struct Change {
      int computing = 0;
      double progress = 0;
    };
    std::map<int64_t, Change> changes;
    for (const int r : ranks)
      for (const trace::Step& step : trace.ranks[static_cast<size_t>(r)].steps) {
        for (const Event& e : step.events)
          if (e.kind == Event::Kind::wait) --changes[e.begin_ns].computing, ++changes[e.end_ns].computing;
        for (const trace::Operation& o : step.operations) {
          if (o.done_ns <= o.started_ns) continue;
          const double share = std::min(1.0, static_cast<double>(o.cpu_ns) / static_cast<double>(o.done_ns - o.started_ns));
          changes[o.started_ns].progress += share, changes[o.done_ns].progress -= share;
        }
      }
    rate_before_ = rate(most, 0, cores);
    double spent = 0;
    int computing = most;
    double progress = 0;
    for (const auto& [time, change] : changes) {
      if (!points_.empty()) spent += points_.back().rate * static_cast<double>(time - points_.back().time);
      computing += change.computing * threads;
      progress += change.progress;
      points_.push_back({time, spent, rate(computing, progress, cores)});
    }
  }

  double between(int64_t begin, int64_t end) const { return points_.empty() ? static_cast<double>(end - begin) : at(end) - at(begin); }

 private:
  struct Point {
    int64_t time;
    double spent;
    double rate;  // from here on
  };
  static double rate(int computing, double progress, int cores) {
    if (computing == 0 || computing + progress <= cores) return 1.0;
    return std::max(0.0, cores - progress) / computing;
  }
  double at(int64_t time) const {
    const auto after = std::ranges::upper_bound(points_, time, {}, &Point::time);
    if (after == points_.begin()) return rate_before_ * static_cast<double>(time - points_.front().time);
    return (after - 1)->spent + (after - 1)->rate * static_cast<double>(time - (after - 1)->time);
  }
  std::vector<Point> points_;
  double rate_before_ = 1;
};

// The step's durations by interval of the script; nothing when it is not a step of that script.
std::optional<RecordedStep> read_step(const std::vector<StepPiece>& pieces, const trace::Step& step, const StepScript& script,
                                      const CoreTime& cores, int threads, double issue_ns) {
  RecordedStep out;
  int64_t at = step.begin_ns;
  double spent = 0;
  auto used_ns = static_cast<double>(step.cpu_ns);
  bool updating = false;
  const auto spend_until = [&](int64_t until) {
    (updating ? out.update_ns : spent) += cores.between(at, until);
    at = until;
  };
  const auto end_interval = [&](const std::string& mark) {
    const size_t i = out.intervals_ns.size();
    if (i >= script.intervals.size() || script.intervals[i].mark != mark) return false;
    out.intervals_ns.push_back(std::max(spent, 0.0));
    spent = 0;
    return true;
  };
  for (const StepPiece& piece : pieces) {
    spend_until(piece.begin_ns);
    if (piece.mark == "updated") updating = false;
    if (!piece.mark.empty() && !end_interval(piece.mark)) return std::nullopt;
    if (piece.kind == StepPiece::Kind::update) updating = true, out.updated_elements += piece.elements;
    if (piece.kind == StepPiece::Kind::issue) (updating ? out.update_ns : spent) -= issue_ns, used_ns -= issue_ns;
    if (piece.kind == StepPiece::Kind::wait) at = piece.end_ns;
  }
  spend_until(step.end_ns);
  if (!end_interval(kStepEnd) || out.intervals_ns.size() != script.intervals.size()) return std::nullopt;
  if (threads == 1) {  // of more threads one alone says little
    const double all = std::reduce(out.intervals_ns.begin(), out.intervals_ns.end(), out.update_ns);
    out.used = std::max(0.0, used_ns) / std::max(all, 1.0);
  }
  return out;
}

// What the main thread did until its next event after issuing something, at the least: the cost of issuing.
double issue_cost(const RunTrace& trace) {
  std::vector<double> gaps;
  for (const RankTrace& t : trace.ranks)
    for (const trace::Step& step : t.steps)
      for (size_t i = 0; i + 1 < step.events.size(); ++i)
        if (step.events[i].kind == Event::Kind::issue)
          gaps.push_back(static_cast<double>(step.events[i + 1].begin_ns - step.events[i].end_ns));
  return quantile(std::move(gaps), 0.25);
}

SoftwareCosts software_costs(const RunTrace& trace) {
  SoftwareCosts costs;
  costs.issue_ns = issue_cost(trace);
  std::vector<double> pickup, wake;
  for (const RankTrace& t : trace.ranks) {
    std::map<int64_t, const trace::Operation*> operations;
    for (const trace::Step& step : t.steps)
      for (const trace::Operation& o : step.operations) operations[o.number] = &o;
    const trace::Operation* before = nullptr;
    for (const auto& [number, o] : operations) {
      if (before != nullptr && before->done_ns < o->queued_ns) pickup.push_back(static_cast<double>(o->started_ns - o->queued_ns));
      before = o;
    }
    for (const trace::Step& step : t.steps)
      for (const Event& e : step.events) {
        if (e.kind != Event::Kind::wait) continue;
        const auto found = operations.find(e.value);
        if (found != operations.end() && found->second->done_ns > e.begin_ns)
          wake.push_back(static_cast<double>(std::max<int64_t>(0, e.end_ns - found->second->done_ns)));
      }
  }
  costs.pickup_ns = median(std::move(pickup));
  costs.wake_ns = median(std::move(wake));
  return costs;
}

StepTiming timing_of(const StepAccount& account) {
  return {to_ms(account.step_ns), to_ms(account.compute_ns()), to_ms(account.exposed_ns), to_ms(account.communication_ns),
          to_ms(account.hidden_ns)};
}

}  // namespace

int64_t overlap_ns(const std::vector<Span>& waits, const Span& transfer) {
  int64_t sum = 0;
  for (auto w = std::ranges::partition_point(waits, [&](const Span& s) { return s.end_ns <= transfer.begin_ns; });
       w != waits.end() && w->begin_ns < transfer.end_ns; ++w)
    sum += std::min(w->end_ns, transfer.end_ns) - std::max(w->begin_ns, transfer.begin_ns);
  return sum;
}

StepTiming typical_timing(const std::vector<std::vector<StepTiming>>& by_rank) {
  std::vector<StepTiming> means(by_rank.front().size());
  for (const auto& rank : by_rank) {
    for (size_t i = 0; i < means.size(); ++i)
      for (double StepTiming::*field :
           {&StepTiming::step_ms, &StepTiming::compute_ms, &StepTiming::exposed_ms, &StepTiming::communication_ms, &StepTiming::hidden_ms})
        means[i].*field += rank[i].*field / static_cast<double>(by_rank.size());
  }
  const auto middle = means.begin() + static_cast<std::ptrdiff_t>(means.size() / 2);
  std::ranges::nth_element(means, middle, {}, &StepTiming::step_ms);
  return *middle;
}

int64_t RecordedRun::samples_of(int rank) const { return models::sample_range(script.batch, rank, ranks).count(); }

RecordedRun recorded_run(const RunTrace& trace) {
  const RankTrace& first = trace.ranks.front();
  RecordedRun run;
  run.job = parse_job(first.job_text, "the job in the trace");
  run.ranks = trace.size();
  run.threads = first.threads;
  run.cores = first.cores;
  run.one_machine = std::ranges::all_of(trace.ranks, [&](const RankTrace& t) { return t.host == first.host; });
  run.script = dry_script(run.job, run.ranks);
  run.costs = software_costs(trace);

  std::vector<int64_t> steps;
  for (size_t i = 1; i < trace.steps.size(); ++i)
    if (trace.steps[i] >= kWarmUpSteps) steps.push_back(trace.steps[i]);
  RZ_CONFIG_CHECK(!steps.empty(), "the trace holds steps up to {}; a simulation needs one after the first {}", trace.steps.back(),
                  kWarmUpSteps);
  std::map<std::string, std::vector<int>> machines;
  for (const RankTrace& t : trace.ranks) machines[t.host].push_back(t.rank);
  std::map<std::string, CoreTime> core_times;
  for (const auto& [host, ranks] : machines) {
    core_times.emplace(host, CoreTime(trace, ranks, run.threads, trace.ranks[static_cast<size_t>(ranks.front())].cores));
    run.ranks_per_machine = std::max(run.ranks_per_machine, static_cast<int>(ranks.size()));
  }
  const auto cores_of = [&](int rank) -> const CoreTime& { return core_times.at(trace.ranks[static_cast<size_t>(rank)].host); };
  std::vector<int64_t> usable;
  run.steps.resize(trace.ranks.size());
  for (const int64_t number : steps) {
    std::vector<RecordedStep> of_ranks;
    for (int r = 0; r < run.ranks; ++r) {
      const trace::Step& step = trace.at(r, number);
      const auto pieces = pieces_of(step, trace.ranks[static_cast<size_t>(r)].names, run.script.buckets);
      if (auto read = read_step(pieces, step, run.script, cores_of(r), run.threads, run.costs.issue_ns)) of_ranks.push_back(std::move(*read));
    }
    if (of_ranks.size() < trace.ranks.size()) continue;
    usable.push_back(number);
    for (size_t r = 0; r < of_ranks.size(); ++r) run.steps[r].push_back(std::move(of_ranks[r]));
  }
  RZ_CONFIG_CHECK(
      !usable.empty(),
      "none of the {} recorded steps is what a dry run of the job does on {} ranks: it was recorded by another version, its steps were "
      "skipped, or its exact sums do not fall evenly on the ranks",
      steps.size(), run.ranks);
  for (int r = 0; r < run.ranks; ++r) {
    auto& own = run.steps[static_cast<size_t>(r)];
    std::vector<double> gaps;
    for (size_t i = 0; i < own.size(); ++i) {
      const auto& kept = trace.ranks[static_cast<size_t>(r)].steps;
      const auto here = std::ranges::find(kept, usable[i], &trace::Step::step);
      own[i].gap_ns =
          here + 1 != kept.end() && (here + 1)->step == usable[i] + 1 ? cores_of(r).between(here->end_ns, (here + 1)->begin_ns) : -1;
      if (own[i].gap_ns >= 0) gaps.push_back(own[i].gap_ns);
    }
    const double usual = median(gaps);
    for (RecordedStep& step : own)
      if (step.gap_ns < 0 || step.gap_ns > kLongGap * usual) step.gap_ns = usual;
  }
  const RunAccount account = account_run(trace);
  std::vector<std::vector<StepTiming>> timings;
  for (const auto& accounts : account.ranks) {
    auto& own = timings.emplace_back();
    for (const StepAccount& a : accounts)
      if (std::ranges::binary_search(usable, a.step)) own.push_back(timing_of(a));
  }
  run.timing = typical_timing(timings);

  const auto collectives = collectives_of(trace);
  run.costs.work = fit_work(collectives);
  if (const auto emulated = network_of(run.job)) {
    run.network = *emulated;
    run.costs.message = fit_message_cost(collectives, run.network, run.ranks);
  } else {
    run.fitted = fit_link(collectives, run.ranks);
    run.network.inside = run.network.between = run.fitted->link;
  }
  run.message_error = network_error(collectives, run.network, run.ranks, run.costs.message);
  return run;
}

}  // namespace rz::tools
