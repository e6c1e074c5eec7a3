#include "tools/overlap/account.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "comm/types.h"
#include "runtime/core/error.h"

namespace rz::tools {

namespace {

using trace::Activity;
using trace::Event;
using trace::Operation;

constexpr double kSlowLink = 0.7;  // of the usual rate: below it a link stands out

struct Wait {
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int64_t number = 0;
};

// The same collective on all ranks of its group.
struct Everywhere {
  int64_t ready_ns = 0;   // when the last rank took it up
  int64_t issued_ns = 0;  // when the last rank issued it
  int last = 0;           // that rank
  int64_t last_issued_ns = 0;
};

struct Slowness {
  double share = 0;  // of a transfer's time
  std::string link;
};

// The links as the ranks measured them at the start: does one stand out?
Slowness slowest_link(const RunTrace& run) {
  std::vector<double> rates;
  for (const RankTrace& t : run.ranks) rates.push_back(t.probe.bytes_per_s);
  const auto slowest = std::ranges::min_element(rates);
  if (rates.size() < 2 || *slowest <= 0) return {};
  std::vector<double> sorted = rates;
  std::ranges::sort(sorted);
  const double usual = sorted.size() == 2 ? sorted[1] : sorted[sorted.size() / 2];
  if (*slowest > kSlowLink * usual) return {};
  const auto to = static_cast<int>(slowest - rates.begin());
  const int from = (to - 1 + run.size()) % run.size();
  constexpr double kMbit = 8e-6;
  return {1 - *slowest / usual, fmt::format("{} -> {} ({:.0f} Mbit/s, the others {:.0f} Mbit/s)", from, to, *slowest * kMbit, usual * kMbit)};
}

class Accountant {
 public:
  explicit Accountant(const RunTrace& run) : run_(run), slow_(slowest_link(run)) {
    for (int r = 0; r < run.size(); ++r) {
      auto& own = rank_.emplace_back();
      for (const trace::Step& step : run.ranks[static_cast<size_t>(r)].steps) {
        for (const Operation& o : step.operations) {
          own.operations[o.number] = &o;
          meet(r, o);
        }
        for (const Event& e : step.events) {
          if (e.kind == Event::Kind::wait) own.waits.push_back({e.begin_ns, e.end_ns, e.value});
          if (e.kind == Event::Kind::bucket_ready) own.buckets.insert(e.name);
          if (e.kind == Event::Kind::issue && e.activity == Activity::optimizer) own.published.insert(e.value);
        }
      }
      for (const auto& [number, o] : own.operations) own.in_order.push_back(o);
      std::ranges::sort(own.in_order, {}, [](const Operation* o) { return o->started_ns; });
      std::ranges::sort(own.waits, {}, &Wait::begin_ns);
      for (const Wait& w : own.waits) own.needed_ns.try_emplace(w.number, w.begin_ns);
    }
  }

  const std::string& slow_link() const { return slow_.link; }

  StepAccount account(int rank, int64_t number) {
    const trace::Step& step = run_.at(rank, number);
    StepAccount a;
    a.rank = rank;
    a.step = number;
    a.step_ns = step.end_ns - step.begin_ns;
    add_activities(step, a);
    std::map<int64_t, CollectiveAccount> collectives;
    for (const Operation& o : step.operations) {
      CollectiveAccount& c = collectives[o.number] = begin(rank, o);
      a.communication_ns += c.transfer_ns();
      a.hidden_ns += c.hidden_ns;
      a.sent_bytes += o.sent_bytes;
    }
    for (const Event& e : step.events) {
      if (e.kind != Event::Kind::wait) continue;
      a.exposed_ns += e.end_ns - e.begin_ns;
      const Operation* o = find(rank, e.value);
      RZ_CONFIG_CHECK(o != nullptr, "the trace of rank {} has lost collective {} of step {}", rank, e.value, number);
      auto [found, is_new] = collectives.try_emplace(e.value);
      if (is_new) {
        found->second = begin(rank, *o);
        found->second.issued_here = false;
      }
      explain(rank, *o, {e.begin_ns, e.end_ns, e.value}, step, found->second);
    }
    for (auto& [id, c] : collectives) {
      for (const Exposure& e : c.exposed) a.exposed_by_cause[static_cast<size_t>(e.cause)] += e.ns;
      a.collectives.push_back(std::move(c));
    }
    return a;
  }

 private:
  struct OfRank {
    std::unordered_map<int64_t, const Operation*> operations;
    std::vector<const Operation*> in_order;
    std::vector<Wait> waits;
    std::unordered_set<uint32_t> buckets;    // names
    std::unordered_set<int64_t> published;   // operations
    std::unordered_map<int64_t, int64_t> needed_ns;  // when the main thread first waited for it
  };

  static std::pair<uint32_t, uint64_t> key(const Operation& o) { return {o.group, o.sequence}; }

  void meet(int rank, const Operation& o) {
    Everywhere& e = everywhere_[key(o)];
    e.issued_ns = std::max(e.issued_ns, o.queued_ns);
    if (o.started_ns < e.ready_ns) return;
    e.ready_ns = o.started_ns;
    e.last = rank;
    e.last_issued_ns = o.queued_ns;
  }

  const Operation* find(int rank, int64_t number) const {
    const auto& operations = rank_[static_cast<size_t>(rank)].operations;
    const auto found = operations.find(number);
    return found == operations.end() ? nullptr : found->second;
  }

  Purpose purpose_of(int rank, const Operation& o) const {
    const OfRank& own = rank_[static_cast<size_t>(rank)];
    // Publications are issued in the optimizer's turn; what is not of a bucket is of the step.
    if (static_cast<comm::CollectiveKind>(o.kind) == comm::CollectiveKind::all_gather) return own.published.contains(o.number) ? Purpose::publish : Purpose::gather;
    return own.buckets.contains(o.name) ? Purpose::reduce : Purpose::scalars;
  }

  CollectiveAccount begin(int rank, const Operation& o) const {
    CollectiveAccount c;
    c.bucket = run_.name(rank, o.name);
    c.purpose = purpose_of(rank, o);
    c.operation = o;
    // Clocks of several machines differ by their error: no transfer ends before it begins.
    c.ready_ns = std::min(everywhere_.at(key(o)).ready_ns, o.done_ns);
    int64_t waited = 0;
    for (const Wait& w : rank_[static_cast<size_t>(rank)].waits)
      waited += std::max<int64_t>(0, std::min(w.end_ns, o.done_ns) - std::max(w.begin_ns, c.ready_ns));
    c.hidden_ns = c.transfer_ns() - waited;
    return c;
  }

  static void add_activities(const trace::Step& step, StepAccount& a) {
    Activity now = Activity::other;
    int64_t since = step.begin_ns;
    const auto spend = [&](int64_t until) { a.activity_ns[static_cast<size_t>(now)] += until - since; };
    for (const Event& e : step.events) {
      if (e.kind == Event::Kind::activity) {
        spend(e.begin_ns);
        now = e.activity;
        since = e.begin_ns;
      } else if (e.kind == Event::Kind::wait) {
        spend(e.begin_ns);
        since = e.end_ns;
      }
    }
    spend(step.end_ns);
  }

  static void add(CollectiveAccount& c, Cause cause, std::string who, int64_t ns) {
    if (ns <= 0) return;
    for (Exposure& e : c.exposed) {
      if (e.cause != cause || e.who != who) continue;
      e.ns += ns;
      return;
    }
    c.exposed.push_back({cause, std::move(who), ns});
  }

  // Time in which bytes moved (or could have): a slow link takes its share of the blame.
  void add_transfer(CollectiveAccount& c, Cause cause, std::string who, int64_t ns) const {
    const auto slow = static_cast<int64_t>(slow_.share * static_cast<double>(ns));
    add(c, Cause::slow_link, slow_.link, slow);
    add(c, cause, std::move(who), ns - slow);
  }

  // The bucket whose gradients came last before a reduction was issued: reductions keep their order, so that a late bucket holds up
  // those after it.
  std::string late_bucket(int rank, const trace::Step& step, const Operation& o) const {
    const Event* last = nullptr;
    for (const Event& e : step.events)
      if (e.kind == Event::Kind::bucket_ready && e.begin_ns <= o.queued_ns) last = &e;
    return last != nullptr ? run_.name(rank, last->name) : run_.name(rank, o.name);
  }

  // Deals the nanoseconds of a wait for `k` to their causes.
  void explain(int rank, const Operation& k, const Wait& wait, const trace::Step& step, CollectiveAccount& account) const {
    const OfRank& own = rank_[static_cast<size_t>(rank)];
    int64_t at = wait.begin_ns;
    for (const Operation* j : own.in_order) {
      if (j->done_ns <= at || at >= wait.end_ns) continue;
      if (j->started_ns > k.started_ns) break;
      if (j->started_ns > at) {
        const int64_t until = std::min(j->started_ns, wait.end_ns);
        add(account, Cause::progress_starved, fmt::format("rank {}", rank), until - at);
        at = until;
      }
      const int64_t until = std::min(j->done_ns, wait.end_ns);
      if (until <= at) continue;
      const Everywhere& all = everywhere_.at(key(*j));
      if (all.ready_ns > at) {
        // Somebody has not begun: because it has not come to the place, or because its progress thread had not.
        const int64_t began = std::min(all.ready_ns, until);
        const int64_t issued = std::clamp(all.last_issued_ns, at, began);
        add(account, Cause::straggler, fmt::format("rank {}", all.last), issued - at);
        add(account, Cause::progress_starved, fmt::format("rank {}", all.last), began - issued);
        at = began;
      }
      if (until > at) {
        if (j == &k) {
          explain_transfer(rank, k, wait, all, step, until - at, account);
        } else {
          const auto needed = own.needed_ns.find(j->number);
          const bool later = needed == own.needed_ns.end() || needed->second > wait.begin_ns;
          add_transfer(account, later ? Cause::queued_behind : Cause::link_bound, run_.name(rank, j->name), until - at);
        }
        at = until;
      }
    }
    if (wait.end_ns > at) add(account, Cause::progress_starved, fmt::format("rank {}", rank), wait.end_ns - at);
  }

  // `ns` of the wait were the transfer of `k` itself. Had the link been free when all had issued it, it would have ended at `alone`:
  // what of the wait lies before that no link could have hidden.
  void explain_transfer(int rank, const Operation& k, const Wait& wait, const Everywhere& all, const trace::Step& step, int64_t ns,
                        CollectiveAccount& account) const {
    if (account.purpose == Purpose::scalars) return add(account, Cause::synchronization, account.bucket, ns);
    const int64_t alone = all.issued_ns + account.transfer_ns();
    const int64_t late = std::clamp<int64_t>(alone - wait.begin_ns, 0, ns);
    if (account.purpose == Purpose::reduce) {
      add_transfer(account, Cause::gradient_late, late_bucket(rank, step, k), late);
    } else {
      add_transfer(account, Cause::prefetch_late, account.bucket, late);
    }
    add_transfer(account, Cause::link_bound, account.bucket, ns - late);
  }

  struct KeyHash {
    size_t operator()(const std::pair<uint32_t, uint64_t>& k) const { return std::hash<uint64_t>{}(k.second * 0x9e3779b97f4a7c15ULL + k.first); }
  };

  const RunTrace& run_;
  Slowness slow_;
  std::vector<OfRank> rank_;
  std::unordered_map<std::pair<uint32_t, uint64_t>, Everywhere, KeyHash> everywhere_;
};

}  // namespace

const char* name(Cause cause) {
  constexpr std::array<const char*, kCauses> kNames = {"gradient_late", "prefetch_late", "link_bound",      "queued_behind",
                                                       "slow_link",     "straggler",     "synchronization", "progress_starved"};
  return kNames[static_cast<size_t>(cause)];
}

const char* name(Purpose purpose) {
  constexpr std::array<const char*, 4> kNames = {"reduce", "gather", "publish", "scalars"};
  return kNames[static_cast<size_t>(purpose)];
}

int64_t CollectiveAccount::exposed_ns() const {
  int64_t sum = 0;
  for (const Exposure& e : exposed) sum += e.ns;
  return sum;
}

int64_t StepAccount::compute_ns() const {
  int64_t sum = 0;
  for (const Activity a : {Activity::forward, Activity::backward, Activity::optimizer}) sum += activity_ns[static_cast<size_t>(a)];
  return sum;
}

int RunAccount::critical_rank() const {
  int critical = 0;
  int64_t most = -1;
  for (size_t r = 0; r < ranks.size(); ++r) {
    int64_t busy = 0;
    for (const StepAccount& a : ranks[r]) busy += a.compute_ns() + a.other_ns();
    if (busy > most) most = busy, critical = static_cast<int>(r);
  }
  return critical;
}

RunAccount account_run(const RunTrace& run) {
  RunAccount account;
  account.size = run.size();
  // The first step warms up; the first kept one waits for collectives of a step that was not kept.
  account.steps.assign(run.steps.begin() + 1, run.steps.end());
  RZ_CONFIG_CHECK(!account.steps.empty(), "the trace holds {} step(s); an account needs at least 2, of which it leaves out the first", run.steps.size());
  for (const RankTrace& t : run.ranks)
    RZ_CONFIG_CHECK(t.dropped == 0, "the trace of rank {} has lost {} collectives: keep fewer steps or use larger buckets", t.rank, t.dropped);
  Accountant accountant(run);
  account.slow_link = accountant.slow_link();
  for (int r = 0; r < run.size(); ++r) {
    auto& steps = account.ranks.emplace_back();
    for (const int64_t step : account.steps) steps.push_back(accountant.account(r, step));
  }
  return account;
}

}  // namespace rz::tools
