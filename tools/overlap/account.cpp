#include "tools/overlap/account.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "comm/types.h"
#include "proto/job.pb.h"
#include "runtime/core/error.h"
#include "tools/overlap/quantile.h"

namespace rz::tools {

namespace {

using trace::Activity;
using trace::Event;
using trace::Operation;

constexpr double kSlowLink = 0.7;  // of the usual rate: below it a link stands out
constexpr double kSlowRank = 1.1;  // of the usual time: above it a rank does

struct Wait {
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  const Operation* operation = nullptr;
  const trace::Step* step = nullptr;
  std::vector<Exposure> pieces;
  enum class Explained : uint8_t { no, being, yes } explained = Explained::no;
};

// The same collective on all ranks of its group.
struct Everywhere {
  int64_t ready_ns = 0;   // when the last rank took it up
  int64_t issued_ns = 0;  // when the last rank issued it
  int last = 0;           // that rank
  int64_t last_issued_ns = 0;
  std::pair<uint32_t, uint64_t> key;  // group, sequence
};

struct Slowness {
  double share = 0;  // of a transfer's time
  std::string link;
};

// Ranks of one machine without emulated links share memory: what the probe measured there is who had a core.
bool has_links(const RunTrace& run) {
  const RankTrace& first = run.ranks.front();
  if (std::ranges::any_of(run.ranks, [&](const RankTrace& t) { return t.host != first.host; })) return true;
  ringzero::Job job;
  google::protobuf::TextFormat::ParseFromString(first.job_text, &job);
  return !job.communication().link().empty() || !job.communication().inter_node_link().empty();
}

// The links as the ranks measured them at the start: does one stand out?
Slowness slowest_link(const RunTrace& run) {
  if (!has_links(run)) return {};
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
  return {1 - *slowest / usual,
          fmt::format("{} -> {} ({:.0f} Mbit/s, the others {:.0f} Mbit/s)", from, to, *slowest * kMbit, usual * kMbit)};
}

Stragglers find_stragglers(const RunAccount& account) {
  std::vector<Stragglers::Slow> busy;
  for (const std::vector<StepAccount>& steps : account.ranks) {
    std::vector<double> times_ms;
    for (const StepAccount& a : steps) times_ms.push_back(to_ms(a.compute_ns() + a.other_ns()));
    busy.push_back({steps.front().rank, median(std::move(times_ms))});
  }
  std::ranges::stable_sort(busy, std::ranges::greater{}, &Stragglers::Slow::busy_ms);
  const Stragglers::Slow& usual = busy[busy.size() / 2];
  Stragglers out{.ranks = {}, .usual_rank = usual.rank, .usual_ms = usual.busy_ms, .saved_ms = {}, .not_simulated = {}};
  std::ranges::copy_if(busy, std::back_inserter(out.ranks), [&](const auto& rank) { return rank.busy_ms > kSlowRank * usual.busy_ms; });
  return out;
}

class Accountant {
 public:
  explicit Accountant(const RunTrace& run) : run_(run), slow_(slowest_link(run)), rank_(static_cast<size_t>(run.size())) {
    for (int r = 0; r < run.size(); ++r) {
      OfRank& own = of(r);
      const auto& steps = run.ranks[static_cast<size_t>(r)].steps;
      for (const trace::Step& step : steps) {
        for (const Operation& o : step.operations) {
          own.operations[o.number] = &o;
          own.in_order.push_back(&o);
          meet(r, o);
        }
      }
      std::ranges::sort(own.in_order, {}, [](const Operation* o) { return o->started_ns; });
      for (size_t i = 1; i < own.in_order.size(); ++i)
        RZ_CONFIG_CHECK(own.in_order[i]->started_ns >= own.in_order[i - 1]->done_ns,
                        "the trace of rank {} is wrong: collective {} begins before {} is done", r, own.in_order[i]->number,
                        own.in_order[i - 1]->number);
      for (const trace::Step& step : steps) {
        own.first_wait[&step] = own.waits.size();
        for (const Event& e : step.events) {
          if (e.kind == Event::Kind::wait) add_wait(r, step, e);
          if (e.kind == Event::Kind::bucket_ready) own.buckets.insert(e.name);
          if (e.kind == Event::Kind::issue && e.activity == Activity::optimizer) own.published.insert(e.value);
        }
      }
    }
  }

  const std::string& slow_link() const { return slow_.link; }

  StepAccount account(int rank, int64_t number) {
    const trace::Step& step = run_.at(rank, number);
    StepAccount a;
    a.rank = rank;
    a.step = number;
    a.step_ns = step.end_ns - step.begin_ns;
    for (const Stretch& s : stretches_of(step)) a.activity_ns[static_cast<size_t>(s.activity)] += s.end_ns - s.begin_ns;
    std::map<int64_t, CollectiveAccount> collectives;
    for (const Operation& o : step.operations) {
      CollectiveAccount& c = collectives[o.number] = begin(rank, o);
      a.communication_ns += c.transfer_ns();
      a.hidden_ns += c.hidden_ns;
      a.sent_bytes += o.sent_bytes;
    }
    std::vector<Wait>& waits = of(rank).waits;
    for (size_t w = of(rank).first_wait.at(&step); w < waits.size() && waits[w].step == &step; ++w) {
      a.exposed_ns += waits[w].end_ns - waits[w].begin_ns;
      const Operation& o = *waits[w].operation;
      auto [found, is_new] = collectives.try_emplace(o.number);
      if (is_new) {
        found->second = begin(rank, o);
        found->second.issued_here = false;
      }
      for (const Exposure& e : explained(rank, waits[w])) found->second.exposed.push_back(e);
    }
    for (auto& [id, c] : collectives) {
      for (const Exposure& e : c.exposed) a.exposed_by_cause[static_cast<size_t>(e.cause)] += e.ns;
      a.collectives.push_back(std::move(c));
    }
    return a;
  }

 private:
  struct OfRank {
    std::unordered_map<int64_t, const Operation*> operations;  // by number
    std::vector<const Operation*> in_order;                    // one after the other, as the progress thread ran them
    std::vector<Wait> waits;                                   // one after the other
    std::unordered_map<const trace::Step*, size_t> first_wait;
    std::unordered_set<uint32_t> buckets;            // names
    std::unordered_set<int64_t> published;           // operations
    std::unordered_map<int64_t, int64_t> needed_ns;  // when the main thread first waited for it
  };

  OfRank& of(int rank) { return rank_[static_cast<size_t>(rank)]; }
  const OfRank& of(int rank) const { return rank_[static_cast<size_t>(rank)]; }

  void add_wait(int rank, const trace::Step& step, const Event& e) {
    OfRank& own = of(rank);
    const auto found = own.operations.find(e.value);
    const bool is_first = &step == &run_.ranks[static_cast<size_t>(rank)].steps.front();
    if (found == own.operations.end() && is_first) return;  // of a step that was not kept
    RZ_CONFIG_CHECK(found != own.operations.end(), "the trace of rank {} has lost collective {} of step {}", rank, e.value, step.step);
    RZ_CONFIG_CHECK(e.end_ns >= e.begin_ns && (own.waits.empty() || e.begin_ns >= own.waits.back().end_ns),
                    "the trace of rank {} is wrong: its waits in step {} overlap", rank, step.step);
    own.waits.push_back({e.begin_ns, e.end_ns, found->second, &step, {}});
    own.needed_ns.try_emplace(e.value, e.begin_ns);
  }

  // The first that ends after a time, of operations or waits that follow one another.
  static int64_t end_ns(const Operation* o) { return o->done_ns; }
  static int64_t end_ns(const Wait& w) { return w.end_ns; }
  template <class List>
  static auto first_after(List& list, int64_t time_ns) {
    return std::ranges::upper_bound(list, time_ns, {}, [](const auto& e) { return end_ns(e); });
  }

  static std::pair<uint32_t, uint64_t> key(const Operation& o) { return {o.group, o.sequence}; }

  void meet(int rank, const Operation& o) {
    Everywhere& e = everywhere_[key(o)];
    e.key = key(o);
    e.issued_ns = std::max(e.issued_ns, o.queued_ns);
    if (o.started_ns < e.ready_ns) return;
    e.ready_ns = o.started_ns;
    e.last = rank;
    e.last_issued_ns = o.queued_ns;
  }

  Purpose purpose_of(int rank, const Operation& o) const {
    const OfRank& own = of(rank);
    // Publications are issued in the optimizer's turn; what is not of a bucket is of the step.
    if (static_cast<comm::CollectiveKind>(o.kind) == comm::CollectiveKind::all_gather)
      return own.published.contains(o.number) ? Purpose::publish : Purpose::gather;
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
    const std::vector<Wait>& waits = of(rank).waits;
    for (auto w = first_after(waits, c.ready_ns); w != waits.end() && w->begin_ns < o.done_ns; ++w)
      waited += std::min(w->end_ns, o.done_ns) - std::max(w->begin_ns, c.ready_ns);
    c.hidden_ns = c.transfer_ns() - waited;
    return c;
  }

  // Pieces follow one another without gaps: `from` is where the next begins.
  class Pieces {
   public:
    Pieces(std::vector<Exposure>& list, int64_t from) : list_(list), at_(from) {}
    int64_t at() const { return at_; }
    void until(int64_t end, Cause cause, const std::string& who) {
      if (end <= at_) return;
      if (!list_.empty() && list_.back().cause == cause && list_.back().who == who) {
        list_.back().ns += end - at_;
      } else {
        list_.push_back({cause, who, at_, end - at_});
      }
      at_ = end;
    }

   private:
    std::vector<Exposure>& list_;
    int64_t at_;
  };

  // Time in which bytes moved (or could have): a slow link takes its share of the blame.
  void transfer_until(Pieces& pieces, int64_t end, Cause cause, const std::string& who) const {
    const auto slow = static_cast<int64_t>(slow_.share * static_cast<double>(end - pieces.at()));
    pieces.until(pieces.at() + slow, Cause::slow_link, slow_.link);
    pieces.until(end, cause, who);
  }

  // Reductions keep their order, so that a late bucket holds up those after it: they are issued in a batch when it is there. The bucket
  // at the head of the batch in which `o` was issued.
  std::string late_bucket(int rank, const trace::Step& step, const Operation& o) const {
    const OfRank& own = of(rank);
    std::optional<int64_t> head;
    for (const Event& e : step.events) {
      if (e.kind == Event::Kind::bucket_ready) head.reset();
      if (e.kind != Event::Kind::issue) continue;
      if (const auto found = own.operations.find(e.value);
          !head && found != own.operations.end() && purpose_of(rank, *found->second) == Purpose::reduce)
        head = e.value;
      if (e.value == o.number) break;
    }
    return run_.name(rank, head ? own.operations.at(*head)->name : o.name);
  }

  // Whether a reduction was issued later after its own gradients were complete (those of the last micro-batch before it) than it takes.
  bool held_up(int rank, const trace::Step& step, const Operation& o) const {
    if (purpose_of(rank, o) != Purpose::reduce) return false;
    int64_t ready_ns = o.queued_ns;
    for (const Event& e : step.events)
      if (e.kind == Event::Kind::bucket_ready && e.name == o.name && e.begin_ns <= o.queued_ns) ready_ns = e.begin_ns;
    return o.queued_ns - ready_ns > o.done_ns - o.started_ns;
  }

  // The causes of a wait, in order of time and without gaps.
  const std::vector<Exposure>& explained(int rank, Wait& wait) {
    if (wait.explained == Wait::Explained::no) {
      wait.explained = Wait::Explained::being;
      explain(rank, wait);
      wait.explained = Wait::Explained::yes;
    }
    return wait.pieces;
  }

  void explain(int rank, Wait& wait) {
    const OfRank& own = of(rank);
    const Operation& k = *wait.operation;
    const std::string here = fmt::format("rank {}", rank);
    // Issued in time, it would have been over by now, and what it stands behind too.
    const bool held = held_up(rank, *wait.step, k);
    Pieces pieces(wait.pieces, wait.begin_ns);
    for (auto next = first_after(own.in_order, wait.begin_ns); next != own.in_order.end() && pieces.at() < wait.end_ns; ++next) {
      const Operation& j = **next;
      if (j.started_ns > k.started_ns) break;
      pieces.until(std::min(j.started_ns, wait.end_ns), Cause::progress_starved, here);
      const int64_t end = std::min(j.done_ns, wait.end_ns);
      const Everywhere& all = everywhere_.at(key(j));
      if (all.ready_ns > pieces.at()) explain_last(all, std::min(all.ready_ns, end), pieces);
      if (held && end > pieces.at()) {
        transfer_until(pieces, end, Cause::gradient_late, late_bucket(rank, *wait.step, k));
      } else if (&j == &k) {
        explain_transfer(rank, wait, all, end, pieces);
      } else if (end > pieces.at()) {
        const auto needed = own.needed_ns.find(j.number);
        const bool later = needed == own.needed_ns.end() || needed->second > wait.begin_ns;
        transfer_until(pieces, end, later ? Cause::queued_behind : Cause::link_bound, run_.name(rank, j.name));
      }
    }
    pieces.until(wait.end_ns, Cause::progress_starved, here);
  }

  // Up to `end` one rank has not begun: it has not come to the place, it still transfers something else, or its progress thread has
  // not woken.
  void explain_last(const Everywhere& all, int64_t end, Pieces& pieces) {
    OfRank& other = of(all.last);
    const std::string who = fmt::format("rank {}", all.last);
    const int64_t issued = std::min(all.last_issued_ns, end);
    // Where that rank waits itself, the blame is passed on. Time runs forward, so that it ends somewhere; should clocks disagree, here.
    for (auto w = first_after(other.waits, pieces.at()); w != other.waits.end() && w->begin_ns < issued; ++w) {
      if (w->explained == Wait::Explained::being) break;
      pieces.until(w->begin_ns, Cause::straggler, who);
      for (const Exposure& e : explained(all.last, *w)) pieces.until(std::min(e.begin_ns + e.ns, issued), e.cause, e.who);
    }
    pieces.until(issued, Cause::straggler, who);
    for (auto next = first_after(other.in_order, pieces.at()); next != other.in_order.end() && (*next)->started_ns < end; ++next) {
      if (key(**next) == all.key) break;
      pieces.until(std::min((*next)->started_ns, end), Cause::progress_starved, who);
      if (pieces.at() < end) transfer_until(pieces, std::min((*next)->done_ns, end), Cause::link_bound, run_.name(all.last, (*next)->name));
    }
    pieces.until(end, Cause::progress_starved, who);
  }

  // Up to `end` the collective itself was transferred. Had the link been free when all had issued it, it would have ended at `alone`:
  // what of the wait lies before that no link could have hidden.
  void explain_transfer(int rank, const Wait& wait, const Everywhere& all, int64_t end, Pieces& pieces) const {
    const int64_t from = pieces.at();
    if (end <= from) return;
    const Operation& k = *wait.operation;
    const std::string& bucket = run_.name(rank, k.name);
    const Purpose purpose = purpose_of(rank, k);
    if (purpose == Purpose::scalars) return pieces.until(end, Cause::synchronization, bucket);
    const int64_t alone = all.issued_ns + k.done_ns - std::min(all.ready_ns, k.done_ns);
    const int64_t late = from + std::clamp<int64_t>(alone - wait.begin_ns, 0, end - from);
    if (late > from) {
      if (purpose == Purpose::reduce) {
        transfer_until(pieces, late, Cause::gradient_late, late_bucket(rank, *wait.step, k));
      } else {
        transfer_until(pieces, late, Cause::prefetch_late, bucket);
      }
    }
    if (end > pieces.at()) transfer_until(pieces, end, Cause::link_bound, bucket);
  }

  struct KeyHash {
    size_t operator()(const std::pair<uint32_t, uint64_t>& k) const {
      return std::hash<uint64_t>{}(k.second * 0x9e3779b97f4a7c15ULL + k.first);
    }
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
  RZ_CONFIG_CHECK(!account.steps.empty(), "the trace holds {} step(s); an account needs at least 2, of which it leaves out the first",
                  run.steps.size());
  for (const RankTrace& t : run.ranks)
    RZ_CONFIG_CHECK(t.dropped == 0, "the trace of rank {} has lost {} collectives: keep fewer steps or use larger buckets", t.rank,
                    t.dropped);
  Accountant accountant(run);
  account.slow_link = accountant.slow_link();
  for (int r = 0; r < run.size(); ++r) {
    auto& steps = account.ranks.emplace_back();
    for (const int64_t step : account.steps) steps.push_back(accountant.account(r, step));
  }
  account.stragglers = find_stragglers(account);
  return account;
}

}  // namespace rz::tools
