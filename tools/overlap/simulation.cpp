#include "tools/overlap/simulation.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>

#include "models/data/batch.h"
#include "runtime/core/error.h"
#include "tools/overlap/quantile.h"

namespace rz::tools {

namespace {

using trace::Activity;

constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
constexpr int64_t kMostItems = 4'000'000;  // of all ranks and steps, unless more steps are asked for
constexpr int64_t kLeastSteps = 3;

class Simulator {
 public:
  Simulator(const RecordedRun& recorded, const StepScript& script, const SimulationOptions& options)
      : recorded_(recorded),
        script_(script),
        network_(options.network, script.ranks, options.message),
        operations_(static_cast<int64_t>(script.operations.size())),
        shares_cores_(options.same_machine && script.ranks * recorded.threads > recorded.cores),
        // Other programs go to idle cores first. And of ranks that took turns on too few cores the time that they used says more than what is left
        // when turns are reckoned off.
        without_others_(script.ranks != recorded.ranks &&
                        (recorded.ranks_per_machine * recorded.threads > recorded.cores ||
                         (recorded.ranks_per_machine * recorded.threads == recorded.cores && options.same_machine &&
                          script.ranks * recorded.threads < recorded.cores))),
        shares_with_progress_((options.same_machine ? script.ranks : recorded.ranks_per_machine) * recorded.threads >= recorded.cores) {
    check_script();
    for (const ScriptOperation& o : script.operations) {
      const Received r = received(o);
      progress_ns_.push_back(r.messages * recorded.costs.work.message_ns + r.bytes * recorded.costs.work.byte_ns);
    }
    // What a rank's threads compute on counts as one core.
    cores_.resize(static_cast<size_t>(std::max(1, recorded.cores / recorded.threads)));
    core_speed_ = static_cast<double>(recorded.cores) / recorded.threads / static_cast<double>(cores_.size());
    const auto kept = static_cast<int64_t>(recorded.steps.front().size());
    const int64_t affordable = kMostItems / (script.ranks * static_cast<int64_t>(script.items.size()));
    steps_ = 1 + (options.steps > 0 ? options.steps : std::clamp(affordable, kLeastSteps, std::max(kept, kLeastSteps)));
    ranks_.resize(static_cast<size_t>(script.ranks));
    for (int r = 0; r < script.ranks; ++r) {
      Rank& rank = ranks_[static_cast<size_t>(r)];
      rank.samples = static_cast<double>(models::sample_range(script.batch, r, script.ranks).count()) /
                     static_cast<double>(std::max<int64_t>(1, recorded.samples_of(r % recorded.ranks)));
      // Of this step and the one before, which has published everything before the first begins.
      rank.done.assign(static_cast<size_t>(2 * operations_), kNever);
      std::fill(rank.done.begin() + operations_, rank.done.end(), 0);
      rank.timings.resize(static_cast<size_t>(steps_));
    }
  }

  SimulatedRun run() {
    for (int r = 0; r < script_.ranks; ++r) ready_.push_back(r);
    do {
      while (!ready_.empty()) {
        const int r = ready_.back();
        ready_.pop_back();
        advance(r);
      }
      balance_cores();
    } while (next_event());
    SimulatedRun out;
    for (Rank& rank : ranks_) {
      RZ_CHECK(rank.step == steps_, "the simulation stands still in step {}", rank.step);
      account_communication(rank);
      out.ranks.emplace_back(rank.timings.begin() + 1, rank.timings.end());
    }
    out.timing = typical_timing(out.ranks);
    std::vector<double> steps_ms(out.ranks.front().size());
    for (const auto& rank : out.ranks)
      for (size_t i = 0; i < steps_ms.size(); ++i) steps_ms[i] += rank[i].step_ms / script_.ranks;
    out.p10_step_ms = quantile(steps_ms, 0.1);
    out.p90_step_ms = quantile(steps_ms, 0.9);
    out.tokens_per_s = static_cast<double>(script_.batch * script_.items_per_sample) / (out.timing.step_ms * 1e-3);
    return out;
  }

 private:
  // What a main thread is in the middle of.
  enum class Doing : uint8_t { nothing, gap, item, waking };
  struct Transfer {
    int64_t step;
    Span span;
  };
  // The progress thread uses so much of a core.
  struct Load {
    double begin;
    double end;
    double share;
  };
  struct Rank {
    double samples = 1;  // this rank's share of the batch over that of the recorded rank
    int64_t step = 0;
    size_t item = 0;
    double now = 0;
    double step_begin = 0;
    Doing doing = Doing::nothing;
    double began = 0;            // with what it is doing
    int64_t waits_for = kNever;  // operation, numbered over all steps
    double wait_begin = 0;
    std::vector<int64_t> done;   // by number mod 2 x operations of a step
    std::vector<double> issued;  // what the progress thread has not taken up, from issued_front on
    size_t issued_front = 0;
    int64_t taken = 0;        // operations that it took up
    double free = 0;          // when it is done with them
    bool busy = false;        // with one whose end is not known
    std::vector<Load> loads;  // of its progress thread, from `now` on
    double debt_ns = 0;       // what it took before that was known
    std::vector<Span> waits;
    std::vector<Transfer> transfers;
    std::vector<StepTiming> timings;
  };
  struct Meeting {
    int begun = 0;
    std::vector<int64_t> begin_ns;
  };
  struct Timed {
    double at;
    int rank;
    bool operator>(const Timed& o) const { return at != o.at ? at > o.at : rank > o.rank; }
  };

  void check_script() const {
    const auto& ours = recorded_.script.intervals;
    const auto same = [](const StepScript::Interval& a, const StepScript::Interval& b) { return a.mark == b.mark; };
    RZ_CONFIG_CHECK(
        std::ranges::equal(ours, script_.intervals, same),
        "on {} ranks a step has {} parts that differ from the {} recorded ones: only ranks, links, stage, buckets, prefetch and "
        "overlap may differ, and with exact sums not the rounds of micro-batches",
        script_.ranks, script_.intervals.size(), ours.size());
  }

  Rank& rank_at(int r) { return ranks_[static_cast<size_t>(r)]; }

  // --- main threads ---

  const RecordedStep& recorded_step(int r, int64_t step) const {
    const auto& steps = recorded_.steps[static_cast<size_t>(r % recorded_.ranks)];
    return steps[static_cast<size_t>(step) % steps.size()];
  }

  double work_ns(int r, const Rank& rank, const ScriptItem& item) const {
    const RecordedStep& step = recorded_step(r, rank.step);
    const double used = without_others_ ? step.used : 1.0;
    if (item.kind == ScriptItem::Kind::update)
      return used * step.update_ns * static_cast<double>(item.value) / static_cast<double>(std::max<int64_t>(1, step.updated_elements));
    const double ns = used * step.intervals_ns[static_cast<size_t>(item.value)];
    switch (script_.intervals[static_cast<size_t>(item.value)].scale) {
      case StepScript::Scale::samples:
        return ns * rank.samples;
      case StepScript::Scale::shard:
        return ns * recorded_.ranks / script_.ranks;
      case StepScript::Scale::fixed:
        break;
    }
    return ns;
  }

  static bool computes(const ScriptItem& item) {
    return item.activity == Activity::forward || item.activity == Activity::backward || item.activity == Activity::optimizer;
  }

  // Goes on with the rank's main thread until it is in the middle of something, or waits for what is not known yet.
  void advance(int r) {
    Rank& rank = rank_at(r);
    while (rank.doing == Doing::nothing && rank.step < steps_) {
      if (rank.item == script_.items.size()) {
        end_step(r, rank);
        continue;
      }
      const ScriptItem& item = script_.items[rank.item];
      switch (item.kind) {
        case ScriptItem::Kind::compute:
        case ScriptItem::Kind::update:
          compute(r, Doing::item, work_ns(r, rank, item));
          break;
        case ScriptItem::Kind::issue:
          rank.now += recorded_.costs.issue_ns;
          if (computes(item)) rank.timings[static_cast<size_t>(rank.step)].compute_ms += recorded_.costs.issue_ns * 1e-6;
          rank.issued.push_back(rank.now);
          ++rank.item;
          take_up(r);
          break;
        case ScriptItem::Kind::wait:
          if (!wait(r, rank, rank.step * operations_ + item.value)) return;
          break;
      }
    }
  }

  void compute(int r, Doing what, double work_ns) {
    Rank& rank = rank_at(r);
    rank.doing = what;
    rank.began = rank.now;
    work_ns += std::exchange(rank.debt_ns, 0);
    const double end = end_of_work(rank, rank.now, work_ns);
    work_ns += taken_ns(rank, rank.now, end);
    if (shares_cores_) {
      begin_working(r, work_ns);
    } else {
      rank.now += work_ns;
      finish(rank);
    }
  }

  // What the progress thread takes of the main thread's core between two moments; it takes it once.
  static double taken_ns(Rank& rank, double from, double to) {
    double sum = 0;
    for (Load& load : rank.loads) {
      sum += load.share * std::max(0.0, std::min(to, load.end) - std::max(from, load.begin));
      load.begin = std::max(load.begin, to);
    }
    std::erase_if(rank.loads, [](const Load& load) { return load.begin >= load.end; });
    return sum;
  }

  // When the main thread, beginning at `at`, has done so much beside the progress thread.
  static double end_of_work(const Rank& rank, double at, double work_ns) {
    for (const Load& load : rank.loads) {  // in order, one after the other
      if (load.end <= at) continue;
      const double before = std::max(0.0, load.begin - at);
      if (work_ns <= before) break;
      at += before;
      work_ns -= before;
      const double beside = (load.end - at) * (1 - load.share);
      if (work_ns < beside) return at + work_ns / (1 - load.share);
      at = load.end;
      work_ns -= beside;
    }
    return at + work_ns;
  }

  // False where the end of the operation is not known yet: then the rank comes again.
  bool wait(int r, Rank& rank, int64_t number) {
    if (rank.waits_for == kNever) rank.wait_begin = rank.now;
    rank.waits_for = number;
    const int64_t done_ns = done_of(rank, number);
    if (done_ns == kNever) return false;
    if (!shares_cores_) {
      // It came that much later.
      const double late = std::exchange(rank.debt_ns, 0);
      rank.wait_begin = rank.now += late;
      if (computes(script_.items[rank.item])) rank.timings[static_cast<size_t>(rank.step)].compute_ms += late * 1e-6;
    }
    const auto done = static_cast<double>(done_ns);
    rank.doing = Doing::waking;
    const double wakes = done > rank.now ? done + recorded_.costs.wake_ns : rank.now;
    if (shares_cores_ && wakes > rank.now) {
      sleeping_.push({wakes, r});
    } else {
      rank.now = wakes;
      finish(rank);
    }
    return true;
  }

  // The rank is done with what it was doing.
  void finish(Rank& rank) {
    StepTiming* timing = rank.step < steps_ ? &rank.timings[static_cast<size_t>(rank.step)] : nullptr;
    switch (rank.doing) {
      case Doing::nothing:
        break;
      case Doing::gap:
        rank.step_begin = rank.now;
        break;
      case Doing::item:
        if (shares_cores_) rank.debt_ns += taken_ns(rank, rank.began, rank.now);  // what was not known when it began
        if (computes(script_.items[rank.item])) timing->compute_ms += (rank.now - rank.began) * 1e-6;
        ++rank.item;
        break;
      case Doing::waking:
        rank.waits_for = kNever;
        timing->exposed_ms += (rank.now - rank.wait_begin) * 1e-6;
        if (rank.now > rank.wait_begin) rank.waits.push_back({static_cast<int64_t>(rank.wait_begin), static_cast<int64_t>(rank.now)});
        ++rank.item;
        break;
    }
    rank.doing = Doing::nothing;
  }

  void end_step(int r, Rank& rank) {
    rank.timings[static_cast<size_t>(rank.step)].step_ms = (rank.now - rank.step_begin) * 1e-6;
    const double gap = recorded_step(r, rank.step).gap_ns;
    ++rank.step;
    rank.item = 0;
    // Results of the step before last make room for those of the next one.
    for (int64_t k = 0; k < operations_; ++k) done_of(rank, rank.step * operations_ + k) = kNever;
    compute(r, Doing::gap, gap);
  }

  int64_t& done_of(Rank& rank, int64_t number) const {
    const int64_t window = 2 * operations_;
    return rank.done[static_cast<size_t>((number % window + window) % window)];
  }

  // --- progress threads ---

  void take_up(int r) {
    for (Rank& rank = rank_at(r); !rank.busy && rank.issued_front < rank.issued.size();) {
      const double issued = rank.issued[rank.issued_front++];
      if (rank.issued_front == rank.issued.size()) rank.issued.clear(), rank.issued_front = 0;
      const int64_t number = rank.taken++;
      rank.busy = true;
      const ScriptOperation& operation = script_.operations[static_cast<size_t>(number % operations_)];
      const int first = operation.first_member(r);
      const int64_t key = number * script_.ranks + first;
      Meeting& meeting = meetings_[key];
      meeting.begin_ns.resize(static_cast<size_t>(operation.group_size));
      meeting.begin_ns[static_cast<size_t>((r - first) / operation.group_stride)] =
          static_cast<int64_t>(std::max(rank.free, issued + recorded_.costs.pickup_ns));
      if (++meeting.begun < operation.group_size) return;
      const std::vector<int64_t> begin_ns = std::move(meeting.begin_ns);
      meetings_.erase(key);
      move(number, operation, first, begin_ns);
    }
  }

  // All have begun the operation.
  void move(int64_t number, const ScriptOperation& operation, int first, const std::vector<int64_t>& begin_ns) {
    done_ns_.resize(begin_ns.size());
    network_.run(operation, first, begin_ns, done_ns_);
    const int64_t last = *std::ranges::max_element(begin_ns);
    for (size_t i = 0; i < begin_ns.size(); ++i) {
      const int r = first + static_cast<int>(i) * operation.group_stride;
      Rank& rank = rank_at(r);
      rank.busy = false;
      rank.free = static_cast<double>(done_ns_[i]);
      if (number >= (rank.step - 1) * operations_) done_of(rank, number) = done_ns_[i];
      rank.transfers.push_back({number / operations_, {std::min(last, done_ns_[i]), done_ns_[i]}});
      if (shares_with_progress_ && last < done_ns_[i]) {
        const auto end = static_cast<double>(done_ns_[i]);
        const double share = progress_ns_[static_cast<size_t>(number % operations_)] / (end - static_cast<double>(last));
        rank.loads.push_back({static_cast<double>(last), end, std::min(1.0, share)});
        if (rank.waits_for != kNever && rank.wait_begin > rank.loads.back().begin) {
          const double came = end_of_work(rank, rank.loads.back().begin, rank.wait_begin - rank.loads.back().begin);
          rank.debt_ns += came - rank.wait_begin;
          taken_ns(rank, rank.wait_begin, came);
        }
      }
      if (rank.waits_for == number) ready_.push_back(r);
      freed_.push_back(r);
    }
    if (std::exchange(freeing_, true)) return;  // the loop below is at work already
    while (!freed_.empty()) {
      const int r = freed_.back();
      freed_.pop_back();
      take_up(r);
    }
    freeing_ = false;
  }

  // Hidden is what of the transfers no wait covers.
  static void account_communication(Rank& rank) {
    for (const Transfer& t : rank.transfers) {
      if (t.step >= static_cast<int64_t>(rank.timings.size())) continue;
      StepTiming& timing = rank.timings[static_cast<size_t>(t.step)];
      const int64_t length = t.span.end_ns - t.span.begin_ns;
      timing.communication_ms += to_ms(length);
      timing.hidden_ms += to_ms(length - overlap_ns(rank.waits, t.span));
    }
  }

  // --- shared cores ---
  // As operating systems do: who begins to compute goes to the core with the fewest that do, those on a core share it evenly, and a core
  // that falls idle takes one over from the fullest.

  struct Working {
    int rank;
    double left_ns;  // as if alone
  };

  double rate(const std::vector<Working>& core) const { return std::min(1.0, core_speed_ / static_cast<double>(core.size())); }

  void begin_working(int r, double work_ns) { std::ranges::min_element(cores_, {}, &std::vector<Working>::size)->push_back({r, work_ns}); }

  // Goes to the next moment at which somebody can go on; false when there is none.
  bool next_event() {
    std::vector<Working>* core_of_first = nullptr;
    size_t first = 0;
    double computed = std::numeric_limits<double>::infinity();
    for (auto& core : cores_)
      for (size_t i = 0; i < core.size(); ++i)
        if (const double end = clock_ + core[i].left_ns / rate(core); end < computed) computed = end, core_of_first = &core, first = i;
    const bool wakes = !sleeping_.empty() && sleeping_.top().at <= computed;
    if (!wakes && core_of_first == nullptr) return false;
    const double time = std::max(wakes ? sleeping_.top().at : computed, clock_);
    for (auto& core : cores_) {
      const double given = rate(core) * (time - clock_);
      for (Working& w : core) w.left_ns -= given;
    }
    clock_ = time;
    int r = 0;
    if (wakes) {
      r = sleeping_.top().rank;
      sleeping_.pop();
    } else {
      r = (*core_of_first)[first].rank;
      core_of_first->erase(core_of_first->begin() + static_cast<std::ptrdiff_t>(first));
      idle_.push_back(core_of_first);
    }
    rank_at(r).now = clock_;
    finish(rank_at(r));
    ready_.push_back(r);
    return true;
  }

  // Once everybody who can go on did: cores that fell idle look for work.
  void balance_cores() {
    for (std::vector<Working>* core : std::exchange(idle_, {})) {
      auto& fullest = *std::ranges::max_element(cores_, {}, &std::vector<Working>::size);
      if (!core->empty() || fullest.size() < 2) continue;
      core->push_back(fullest.back());
      fullest.pop_back();
    }
  }

  const RecordedRun& recorded_;
  const StepScript& script_;
  VirtualNetwork network_;
  int64_t operations_;
  bool shares_cores_;
  bool without_others_;
  bool shares_with_progress_;
  std::vector<double> progress_ns_;  // of a core, by operation of a step
  double core_speed_ = 1;            // of what a rank's threads need
  std::vector<std::vector<Working>> cores_;
  std::vector<std::vector<Working>*> idle_;
  int64_t steps_ = 0;
  std::vector<Rank> ranks_;
  std::unordered_map<int64_t, Meeting> meetings_;
  std::vector<int64_t> done_ns_;
  std::vector<int> ready_;  // main threads that can go on
  std::vector<int> freed_;  // progress threads that can go on
  bool freeing_ = false;
  std::priority_queue<Timed, std::vector<Timed>, std::greater<>> sleeping_;
  double clock_ = 0;
};

}  // namespace

SimulatedRun simulate(const RecordedRun& recorded, const StepScript& script, const SimulationOptions& options) {
  return Simulator(recorded, script, options).run();
}

}  // namespace rz::tools
