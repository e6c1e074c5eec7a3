// The account of a step: causes worked out by hand on synthetic traces, and what must hold for any trace.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "tests/tools/synthetic_trace.h"
#include "tests/tools/tiny_run.h"
#include "tools/overlap/account.h"

namespace rz::tools {
namespace {

using comm::CollectiveKind;
using ::testing::HasSubstr;
using trace::Activity;
using Blame = std::map<std::pair<Cause, std::string>, int64_t>;  // us

// What must hold for every account of every step, to the nanosecond.
void expect_sound(const RunTrace& run, const RunAccount& account) {
  for (const auto& steps : account.ranks) {
    for (const StepAccount& a : steps) {
      SCOPED_TRACE(fmt::format("rank {}, step {}", a.rank, a.step));
      const trace::Step& step = run.at(a.rank, a.step);
      int64_t activities = 0;
      for (const int64_t ns : a.activity_ns) activities += ns;
      EXPECT_EQ(activities + a.exposed_ns, step.end_ns - step.begin_ns);
      EXPECT_EQ(a.step_ns, step.end_ns - step.begin_ns);
      EXPECT_EQ(a.compute_ns() + a.exposed_ns + a.other_ns(), a.step_ns);
      EXPECT_GE(a.other_ns(), 0);
      int64_t causes = 0;
      for (const int64_t ns : a.exposed_by_cause) causes += ns;
      EXPECT_EQ(causes, a.exposed_ns);
      // The causes of a wait follow one another and fill it.
      std::map<int64_t, std::vector<Exposure>> pieces;
      int64_t communication = 0, hidden = 0;
      for (const CollectiveAccount& c : a.collectives) {
        pieces[c.operation.number] = c.exposed;
        EXPECT_GE(c.hidden_ns, 0) << c.bucket;
        EXPECT_LE(c.hidden_ns, c.transfer_ns()) << c.bucket;
        if (!c.issued_here) continue;
        communication += c.transfer_ns();
        hidden += c.hidden_ns;
      }
      EXPECT_EQ(communication, a.communication_ns);
      EXPECT_EQ(hidden, a.hidden_ns);
      for (const trace::Event& e : step.events) {
        if (e.kind != trace::Event::Kind::wait) continue;
        auto& list = pieces[e.value];
        int64_t at = e.begin_ns;
        while (!list.empty() && at < e.end_ns) {
          EXPECT_EQ(list.front().begin_ns, at);
          EXPECT_GT(list.front().ns, 0);
          at += list.front().ns;
          list.erase(list.begin());
        }
        EXPECT_EQ(at, e.end_ns);
      }
      for (const auto& [number, left] : pieces) EXPECT_TRUE(left.empty()) << number;
    }
  }
}

Blame blame(SyntheticTrace& trace, int rank) {
  const RunAccount account = trace.account();
  expect_sound(trace.run(), account);
  Blame blame;
  for (const CollectiveAccount& c : account.ranks[static_cast<size_t>(rank)][0].collectives)
    for (const Exposure& e : c.exposed) {
      EXPECT_EQ(e.ns % 1000, 0);
      blame[{e.cause, e.who}] += e.ns / 1000;
    }
  return blame;
}

TEST(OverlapCauses, AGradientThatIsReadyLate) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    // A transfer of 30 us begins 1 us after it is queued; 2 us later there is nothing left to compute.
    trace.wait(r, 50, 80, trace.reduction(r, "b", 48, 49, 79));
  }
  // Had it begun when it was queued it would have ended at 78; the main thread wakes 1 us after its end.
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::gradient_late, "b"}, 28}, {{Cause::link_bound, "b"}, 1}, {{Cause::progress_starved, "rank 0"}, 1}}));
}

// Reductions keep their order: a bucket that was ready before is issued when the late one before it is.
TEST(OverlapCauses, ALateBucketIsNamedForThoseBehindIt) {
  const auto blame_when_ready_at = [](int64_t ready) {
    SyntheticTrace trace(2);
    for (const int r : {0, 1}) {
      trace.activity(r, 0, Activity::backward);
      trace.bucket_ready(r, ready, "early");
      trace.bucket_ready(r, 40, "late");
      const int64_t late = trace.collective(r, CollectiveKind::reduce_scatter, "late", 40, 40, 45);
      const int64_t early = trace.collective(r, CollectiveKind::reduce_scatter, "early", 40, 45, 65);
      trace.wait(r, 44, 45, late);
      trace.wait(r, 45, 65, early);
    }
    return blame(trace, 1);
  };
  // Issued when it was ready, it would have been over before anybody waited.
  EXPECT_EQ(blame_when_ready_at(10), (Blame{{{Cause::gradient_late, "late"}, 1 + 20}}));
  // Ready at 35, it would not; of its 20 us, those until 60 are beyond any link's help.
  EXPECT_EQ(blame_when_ready_at(35), (Blame{{{Cause::gradient_late, "late"}, 1 + 15}, {{Cause::link_bound, "early"}, 5}}));
}

// Gradients of the micro-batch before are no reason to reduce.
TEST(OverlapCauses, AnEarlierMicroBatchHoldsNothingUp) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    trace.bucket_ready(r, 5, "a");
    trace.bucket_ready(r, 6, "b");
    const int64_t a = trace.reduction(r, "a", 40, 40, 50);
    const int64_t b = trace.reduction(r, "b", 41, 50, 70);
    trace.wait(r, 50, 50, a);
    trace.wait(r, 62, 70, b);
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::link_bound, "b"}, 8}}));
}

TEST(OverlapCauses, AGatherThatIsIssuedLate) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::forward);
    trace.wait(r, 30, 60, trace.collective(r, CollectiveKind::all_gather, "unit", 30, 30, 60, Activity::forward));
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::prefetch_late, "unit"}, 30}}));
  EXPECT_EQ(trace.account(0).collectives[0].purpose, Purpose::gather);
}

TEST(OverlapCauses, APublicationIsTheOptimizersGather) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.in_step(0);
    const int64_t n = trace.collective(r, CollectiveKind::all_gather, "unit", -2, -2, 18, Activity::optimizer);
    trace.in_step(1);
    trace.activity(r, 0, Activity::forward);
    trace.wait(r, 10, 18, n);
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::prefetch_late, "unit"}, 8}}));
  const StepAccount a = trace.account(0);
  ASSERT_EQ(a.collectives.size(), 1u);
  EXPECT_EQ(a.collectives[0].purpose, Purpose::publish);
  // It belongs to the step that issued it.
  EXPECT_FALSE(a.collectives[0].issued_here);
  EXPECT_EQ(a.communication_ns, 0);
  EXPECT_EQ(a.sent_bytes, 0u);
}

TEST(OverlapCauses, ALinkThatIsTooSlowForSoMuch) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    const int64_t a = trace.reduction(r, "a", 10, 10, 50);
    const int64_t b = trace.reduction(r, "b", 12, 50, 90);
    trace.activity(r, 52, Activity::optimizer);
    trace.wait(r, 51, 51, a);
    trace.wait(r, 52, 90, b);
  }
  // Alone, b would have ended at 52.
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::link_bound, "b"}, 38}}));
}

TEST(OverlapCauses, SomethingLessUrgentBeforeIt) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    const int64_t a = trace.reduction(r, "a", 10, 10, 60);
    const int64_t b = trace.collective(r, CollectiveKind::all_gather, "b", 20, 60, 70);
    trace.wait(r, 30, 70, b);
    trace.wait(r, 80, 80, a);
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::queued_behind, "a"}, 30}, {{Cause::link_bound, "b"}, 10}}));
}

TEST(OverlapCauses, ASlowLinkTakesItsShare) {
  for (const int ranks : {2, 3, 4}) {
    SyntheticTrace trace(ranks);
    for (int r = 0; r < ranks; ++r) {
      trace.run().ranks[static_cast<size_t>(r)].probe = {1000, r == ranks - 1 ? 25e6 : 100e6};
      trace.run().ranks[static_cast<size_t>(r)].host = fmt::format("paper{}", r);
      trace.activity(r, 0, Activity::forward);
      trace.wait(r, 30, 70, trace.collective(r, CollectiveKind::all_gather, "unit", 30, 30, 70, Activity::forward));
    }
    // At a quarter of the rate, three quarters of the time are its own.
    const std::string link = fmt::format("{} -> {} (200 Mbit/s, the others 800 Mbit/s)", ranks - 2, ranks - 1);
    EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::slow_link, link}, 30}, {{Cause::prefetch_late, "unit"}, 10}})) << ranks;
    EXPECT_EQ(trace.account().slow_link, link);
    // Ranks of one machine that share memory have no links.
    for (RankTrace& rank : trace.run().ranks) rank.host = "paper";
    EXPECT_EQ(trace.account().slow_link, "");
    trace.run().ranks[0].job_text = "communication { link: \"800Mbit\" }";
    EXPECT_EQ(trace.account().slow_link, link);
  }
}

TEST(OverlapCauses, LinksThatDifferALittleAreAllRight) {
  SyntheticTrace trace(3);
  for (int r = 0; r < 3; ++r) {
    trace.run().ranks[static_cast<size_t>(r)].probe = {1000, r == 1 ? 80e6 : 100e6};
    trace.run().ranks[static_cast<size_t>(r)].host = fmt::format("paper{}", r);
    trace.wait(r, 30, 70, trace.collective(r, CollectiveKind::all_gather, "unit", 30, 30, 70, Activity::forward));
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::prefetch_late, "unit"}, 40}}));
  EXPECT_EQ(trace.account().slow_link, "");
}

TEST(OverlapCauses, AStraggler) {
  SyntheticTrace trace(3);
  for (const int r : {0, 1, 2}) {
    trace.activity(r, 0, Activity::backward);
    const int64_t begin = r == 1 ? 40 : 10;
    trace.wait(r, r == 1 ? 40 : 20, 50, trace.reduction(r, "b", begin, begin, 50));
  }
  // No link could have ended a transfer of 10 us, issued everywhere at 40, before 50.
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::straggler, "rank 1"}, 20}, {{Cause::gradient_late, "b"}, 10}}));
  EXPECT_EQ(blame(trace, 1), (Blame{{{Cause::gradient_late, "b"}, 10}}));
  EXPECT_EQ(trace.account().critical_rank(), 1);
}

TEST(OverlapCauses, WhatEverybodyMustKnowAtOnce) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) trace.wait(r, 30, 40, trace.collective(r, CollectiveKind::all_reduce, "scalars", 30, 31, 39));
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::synchronization, "scalars"}, 8}, {{Cause::progress_starved, "rank 0"}, 2}}));
  EXPECT_EQ(trace.account(0).collectives[0].purpose, Purpose::scalars);
}

TEST(OverlapCauses, AProgressThreadWithoutACore) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    trace.wait(r, 15, 45, trace.reduction(r, "b", 10, 30, 40));
  }
  EXPECT_EQ(blame(trace, 1), (Blame{{{Cause::progress_starved, "rank 1"}, 15 + 5}, {{Cause::gradient_late, "b"}, 5}, {{Cause::link_bound, "b"}, 5}}));
}

TEST(OverlapCauses, AnotherRanksProgressThreadWithoutACore) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::backward);
    trace.wait(r, 15, 40, trace.reduction(r, "b", 10, r == 0 ? 10 : 30, 40));
  }
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::progress_starved, "rank 1"}, 15}, {{Cause::gradient_late, "b"}, 5}, {{Cause::link_bound, "b"}, 5}}));
}

// Rank 1 is behind because it waits for the link: that is no straggler.
TEST(OverlapCauses, ARankThatWaitsItselfPassesTheBlameOn) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) trace.activity(r, 0, Activity::backward);
  const int64_t a0 = trace.reduction(0, "a", 5, 5, 20);
  const int64_t b0 = trace.reduction(0, "b", 22, 22, 60);
  trace.wait(0, 20, 20, a0);
  trace.wait(0, 25, 60, b0);
  const int64_t a1 = trace.reduction(1, "a", 5, 5, 40);  // its end of the ring comes later
  trace.wait(1, 30, 40, a1);
  trace.wait(1, 45, 60, trace.reduction(1, "b", 42, 42, 60));
  // Rank 0 waits from 25 to 42 for rank 1 to issue b: until 30 it computes, until 40 it waits for a, until 42 it computes.
  // The transfer of b, 18 us, ended as early as it could.
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::straggler, "rank 1"}, 5 + 2}, {{Cause::gradient_late, "a"}, 10}, {{Cause::gradient_late, "b"}, 18}}));
}

// Rank 1 has issued b, but its progress thread is still in the transfer of a.
TEST(OverlapCauses, ARankThatStillTransfersSomethingElse) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) trace.activity(r, 0, Activity::backward);
  trace.reduction(0, "a", 5, 5, 20);
  trace.wait(0, 25, 60, trace.reduction(0, "b", 22, 22, 60));
  trace.reduction(1, "a", 5, 5, 40);
  trace.wait(1, 41, 60, trace.reduction(1, "b", 22, 42, 60));
  // Until 40 a is on the link, until 42 rank 1 does not take b up; alone, b would have ended at 22 + 18.
  EXPECT_EQ(blame(trace, 0), (Blame{{{Cause::link_bound, "a"}, 15}, {{Cause::progress_starved, "rank 1"}, 2}, {{Cause::gradient_late, "b"}, 15}, {{Cause::link_bound, "b"}, 3}}));
}

TEST(OverlapAccount, HiddenIsTheTransferWithoutWaits) {
  SyntheticTrace trace(2);
  for (const int r : {0, 1}) {
    trace.activity(r, 0, Activity::data);
    trace.activity(r, 5, Activity::forward, "u");
    trace.activity(r, 10, Activity::backward, "u");
    trace.wait(r, 35, 45, trace.reduction(r, "b", 12, r == 0 ? 13 : 15, 40));
    trace.activity(r, 50, Activity::optimizer);
    trace.activity(r, 90, Activity::other);
  }
  const StepAccount a = trace.account(0);
  EXPECT_EQ(a.communication_ns, 25'000);  // from 15, when the last rank took it up
  EXPECT_EQ(a.hidden_ns, 20'000);
  EXPECT_DOUBLE_EQ(a.hidden_fraction(), 0.8);
  EXPECT_EQ(a.exposed_ns, 10'000);
  EXPECT_EQ(a.compute_ns(), (5 + 30 + 40) * 1000);  // forward, backward without its wait, optimizer
  EXPECT_EQ(a.other_ns(), 15'000);                  // data, other
  EXPECT_EQ(a.sent_bytes, 8u);
  expect_sound(trace.run(), trace.account());
}

TEST(OverlapAccount, OneRankHidesNothingAndExposesNothing) {
  SyntheticTrace trace(1);
  trace.activity(0, 0, Activity::forward);
  const StepAccount a = trace.account(0);
  EXPECT_EQ(a.compute_ns(), SyntheticTrace::kLength * 1000);
  EXPECT_EQ(a.exposed_ns, 0);
  EXPECT_EQ(a.hidden_fraction(), 1);
}

std::string refusal(SyntheticTrace& trace) {
  try {
    trace.account();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "accepted";
}

// Rank r computes for busy[r] of the step's 100 us and waits for the rest.
Stragglers stragglers_of(const std::vector<int64_t>& busy) {
  SyntheticTrace trace(static_cast<int>(busy.size()));
  for (size_t r = 0; r < busy.size(); ++r) {
    const int rank = static_cast<int>(r);
    trace.activity(rank, 0, Activity::backward);
    const int64_t number = trace.reduction(rank, "b", busy[r] - 1, std::ranges::max(busy) - 1, 100);
    trace.wait(rank, busy[r], 100, number);
  }
  return trace.account().stragglers;
}

TEST(OverlapAccount, RanksThatAreBusyLongerThanTheUsualOneAreStragglers) {
  const Stragglers one = stragglers_of({70, 93, 72});
  ASSERT_EQ(one.ranks.size(), 1u);
  EXPECT_EQ(one.ranks[0].rank, 1);
  EXPECT_NEAR(one.ranks[0].busy_ms, 0.093, 1e-9);
  EXPECT_EQ(one.usual_rank, 2);
  EXPECT_NEAR(one.usual_ms, 0.072, 1e-9);
  const Stragglers two = stragglers_of({90, 60, 80, 61});
  ASSERT_EQ(two.ranks.size(), 2u);
  EXPECT_EQ(two.ranks[0].rank, 0);
  EXPECT_EQ(two.ranks[1].rank, 2);
  EXPECT_EQ(two.usual_rank, 3);
  EXPECT_EQ(stragglers_of({50, 90}).ranks.at(0).rank, 1);
  EXPECT_TRUE(stragglers_of({80, 85, 78, 87}).ranks.empty());
  EXPECT_TRUE(stragglers_of({90}).ranks.empty());
}

TEST(OverlapAccount, ATraceThatCannotBeIsRefused) {
  SyntheticTrace lost(2);
  lost.wait(1, 10, 20, 7);
  EXPECT_THAT(refusal(lost), HasSubstr("rank 1 has lost collective 7 of step 1"));
  SyntheticTrace waits(1);
  const int64_t n = waits.reduction(0, "b", 1, 1, 40);
  waits.wait(0, 10, 20, n);
  waits.wait(0, 15, 25, n);
  EXPECT_THAT(refusal(waits), HasSubstr("its waits in step 1 overlap"));
  SyntheticTrace together(1);
  together.reduction(0, "b", 1, 1, 40);
  together.reduction(0, "c", 1, 39, 50);
  EXPECT_THAT(refusal(together), HasSubstr("collective 1 begins before 0 is done"));
  SyntheticTrace dropped(2);
  dropped.run().ranks[1].dropped = 3;
  EXPECT_THAT(refusal(dropped), HasSubstr("rank 1 has lost 3 collectives"));
  SyntheticTrace single(2);
  single.run().steps = {1};
  EXPECT_THAT(refusal(single), HasSubstr("1 step(s)"));
}

TEST(OverlapAccount, TheFirstKeptStepMayWaitForWhatWasForgotten) {
  SyntheticTrace trace(2);
  trace.in_step(0);
  trace.wait(0, -50, -40, -1);
  EXPECT_EQ(refusal(trace), "accepted");
}

// Any schedule that ranks could have run: the sums hold to the nanosecond, and no piece is negative.
TEST(OverlapAccount, SumsHoldForRandomSchedules) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const Random random(seed, "schedule");
    uint64_t drawn = 0;
    const auto draw = [&](uint64_t below) { return static_cast<int64_t>(random.below(drawn++, below)); };
    const int ranks = 1 + static_cast<int>(draw(4));
    SyntheticTrace trace(ranks);
    std::vector<int64_t> now(static_cast<size_t>(ranks), 0), busy_until(static_cast<size_t>(ranks), 0);
    for (int r = 0; r < ranks; ++r) trace.run().ranks[static_cast<size_t>(r)].probe = {1000, 1e6 * static_cast<double>(1 + draw(20))};
    std::vector<std::vector<std::pair<int64_t, int64_t>>> open(static_cast<size_t>(ranks));  // number, done
    for (int i = 0; i < 6; ++i) {
      const auto kind = draw(2) == 0 ? CollectiveKind::reduce_scatter : CollectiveKind::all_gather;
      const std::string name = fmt::format("b{}", draw(3));
      std::vector<int64_t> queued, started;
      int64_t ready = 0;
      for (size_t r = 0; r < now.size(); ++r) {
        now[r] += draw(6);
        trace.activity(static_cast<int>(r), now[r], static_cast<Activity>(draw(trace::kActivities)), name);
        if (draw(2) == 0) trace.bucket_ready(static_cast<int>(r), now[r], name);
        queued.push_back(now[r]);
        started.push_back(std::max(now[r], busy_until[r]) + draw(3));
        ready = std::max(ready, started.back());
      }
      for (size_t r = 0; r < now.size(); ++r) {
        busy_until[r] = ready + draw(8);
        const int64_t n = trace.collective(static_cast<int>(r), kind, name, queued[r], started[r], busy_until[r], static_cast<Activity>(draw(trace::kActivities)));
        open[r].emplace_back(n, busy_until[r]);
        while (!open[r].empty() && draw(2) == 0) {
          const auto [number, done] = open[r].back();
          open[r].pop_back();
          const int64_t begin = now[r] + draw(4);
          now[r] = std::max(begin, done) + draw(2);
          trace.wait(static_cast<int>(r), begin, now[r], number);
        }
      }
    }
    ASSERT_LE(*std::ranges::max_element(now), 10 * SyntheticTrace::kLength);
    for (RankTrace& t : trace.run().ranks) t.steps[1].end_ns = SyntheticTrace::ns(10 * SyntheticTrace::kLength);
    expect_sound(trace.run(), trace.account());
  }
}

using OverlapOfRuns = TinyRun;

TEST_F(OverlapOfRuns, SumsHoldInAllStages) {
  for (const int stage : {0, 1, 2, 3}) {
    for (const bool on : {true, false}) {
      SCOPED_TRACE(fmt::format("stage {}, overlap {}", stage, on));
      const std::string run_path = train_tiny(fmt::format("s{}{}", stage, on), 3, {fmt::format("sharding.stage={}", stage), fmt::format("sharding.overlap={}", on)}, "2Gbit,20us");
      const RunTrace run = read_run_trace(run_path);
      const RunAccount account = account_run(run);
      EXPECT_EQ(account.steps, (std::vector<int64_t>{1, 2, 3, 4}));
      expect_sound(run, account);
      for (const auto& steps : account.ranks)
        for (const StepAccount& a : steps) {
          EXPECT_GT(a.activity_ns[static_cast<size_t>(Activity::forward)], 0);
          EXPECT_GT(a.activity_ns[static_cast<size_t>(Activity::backward)], 0);
          EXPECT_GT(a.activity_ns[static_cast<size_t>(Activity::optimizer)], 0);
          EXPECT_GT(a.communication_ns, 0);
          std::map<Purpose, int> issued;
          for (const CollectiveAccount& c : a.collectives) issued[c.purpose] += c.issued_here ? 1 : 0;
          EXPECT_EQ(issued[Purpose::reduce], 4);  // three blocks, and what is outside them
          EXPECT_EQ(issued[Purpose::publish], stage == 1 || stage == 2 ? 4 : 0);
          // On each way, but the outermost weights stay between them.
          EXPECT_EQ(issued[Purpose::gather], stage == 3 ? 4 + 3 : 0);
          EXPECT_GE(issued[Purpose::scalars], 1);
        }
    }
  }
}

// Where nothing overlaps, each collective is waited for at once: nothing is computed between its issue and its wait.
TEST_F(OverlapOfRuns, WithoutOverlapTheMainThreadStandsStill) {
  const RunTrace run = read_run_trace(train_tiny("off", 3, {"sharding.stage=2", "sharding.overlap=false"}));
  for (const RankTrace& t : run.ranks)
    for (const trace::Step& step : t.steps) {
      int64_t waiting_for = -1;
      for (const trace::Event& e : step.events) {
        if (waiting_for >= 0) {
          EXPECT_EQ(e.kind, trace::Event::Kind::wait);
          EXPECT_EQ(e.value, waiting_for);
          waiting_for = -1;
        }
        if (e.kind == trace::Event::Kind::issue) waiting_for = e.value;
      }
      EXPECT_EQ(waiting_for, -1);
    }
}

}  // namespace
}  // namespace rz::tools
