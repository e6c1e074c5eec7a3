// Simulated collectives and steps against times computed by hand; the events of dry runs against those of real ones; what recorded runs
// and questions are refused.
#include "tools/overlap/simulation.h"
#include "tools/overlap/stragglers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "comm/dry.h"
#include "comm/progress.h"
#include "comm/ring.h"
#include "comm/traffic.h"
#include "runtime/core/rank_context.h"
#include "tests/support/ranks.h"
#include "tools/dry_task.h"
#include "tools/job_file.h"
#include "tools/overlap/network_fit.h"
#include "tools/overlap/simulate_report.h"
#include "tools/overlap/sweep_chart.h"
#include "tools/session.h"
#include "tools/train.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using comm::CollectiveKind;
using comm::LinkSpec;
using comm::NetworkSpec;
using comm::Order;
using ::testing::HasSubstr;
using Kind = ScriptItem::Kind;

constexpr int64_t kUs = 1000;

NetworkSpec equal_links(double bytes_per_s, double latency_s) {
  NetworkSpec n;
  n.inside = n.between = {.bytes_per_s = bytes_per_s, .latency_s = latency_s};
  return n;
}

ScriptOperation operation(CollectiveKind kind, uint64_t bytes, int ranks, int stride = 1, Order order = Order::ring) {
  return {"op", kind, order, bytes, ranks, stride};
}

std::vector<int64_t> done_times(const NetworkSpec& network, const ScriptOperation& op, std::vector<int64_t> begin_ns, MessageCost cost = {},
                                int ranks = 0, int first = 0) {
  VirtualNetwork n(network, ranks > 0 ? ranks : op.group_size, cost);
  std::vector<int64_t> done(begin_ns.size());
  n.run(op, first, begin_ns, done);
  return done;
}

// --- collectives ---

TEST(VirtualNetwork, TakesTheTimeOfTheRingOverEqualLinks) {
  const double segment = static_cast<double>(comm::ProgressOptions{}.segment_bytes);
  for (const int n : {2, 3, 4, 8, 300, 500}) {  // the last by the closed form
    for (const double chunk : {256.0, 100'000.0, 3.5 * segment}) {
      if (n > 8 && chunk > segment) continue;
      for (const bool reduces : {false, true}) {
        SCOPED_TRACE(fmt::format("{} ranks, chunks of {} bytes, all_reduce {}", n, chunk, reduces));
        const LinkSpec link{.bytes_per_s = 1e9, .latency_s = 20e-6};
        const auto op = operation(reduces ? CollectiveKind::all_reduce : CollectiveKind::all_gather,
                                  static_cast<uint64_t>(chunk) * static_cast<uint64_t>(n), n);
        const double expected = (link.latency_s + comm::ring_pass_s(link, (reduces ? 2 : 1) * (n - 1), chunk, segment)) * 1e9;
        for (const int64_t done : done_times(equal_links(1e9, 20e-6), op, std::vector<int64_t>(static_cast<size_t>(n), 7000)))
          EXPECT_NEAR(static_cast<double>(done - 7000), expected, 1e-4 * expected + 2 * n);
      }
    }
  }
}

TEST(VirtualNetwork, GathersShortReductionsInTurnsThatDouble) {
  for (const int n : {2, 3, 5, 8, 1000}) {
    const auto op = operation(CollectiveKind::all_reduce, 8, n);
    double expected = 20e3;                                                                     // the fingerprint
    for (int held = 1; held < n; held *= 2) expected += 20e3 + 8.0 * std::min(held, n - held);  // at a byte a nanosecond
    for (const int64_t done : done_times(equal_links(1e9, 20e-6), op, std::vector<int64_t>(static_cast<size_t>(n), 7000)))
      EXPECT_NEAR(static_cast<double>(done - 7000), expected, 30) << n << " ranks";
  }
}

TEST(VirtualNetwork, MovesWhenAllHaveBegunAndNotBefore) {
  // Chunks of 1000 bytes, 1 byte/ns, 100 ns. Rank 1 begins 5000 ns late.
  const auto gather = operation(CollectiveKind::all_gather, 2000, 2);
  // Rank 0 has rank 1's fingerprint at 5100 and sends; rank 1 begins at 5000 with rank 0's fingerprint there.
  EXPECT_EQ(done_times(equal_links(1e9, 100e-9), gather, {0, 5000}), (std::vector<int64_t>{6100, 6200}));
  // With three ranks only the right neighbour of the late one waits for its fingerprint: rank 0 hears from rank 2, which is there.
  const auto three = operation(CollectiveKind::all_gather, 3000, 3);
  // Step 1: rank 0 sends at 100, rank 1 at 5000, rank 2 at 5100 (it had to hear from rank 1). Arrivals: at rank 1 1200, at rank 2 6100,
  // at rank 0 6200. In step 2 rank 0 passes on at 6200, which is at rank 1 at 7300; rank 1 at 5000, when its port is busy until 6000, which
  // is at rank 2 at 7100; rank 2 at 6100, which is at rank 0 at 7200.
  EXPECT_EQ(done_times(equal_links(1e9, 100e-9), three, {0, 5000, 0}), (std::vector<int64_t>{7200, 7300, 7100}));
}

TEST(VirtualNetwork, ReceivesTheMessagesOfARealRank) {
  constexpr size_t kSegment = comm::ProgressOptions{}.segment_bytes;
  for (const int n : {2, 3, 8, 48}) {
    for (const size_t chunk : {size_t{1000}, size_t{56173}, size_t{4} * (comm::kRingWindow * kSegment / 47 / 4)}) {
      for (const Order order : {Order::ring, Order::ordered}) {
        for (const auto kind : {CollectiveKind::reduce_scatter, CollectiveKind::all_gather, CollectiveKind::all_reduce}) {
          const size_t count = chunk * static_cast<size_t>(n);
          SCOPED_TRACE(fmt::format("{} of {} elements, {} ranks, ordered {}", static_cast<int>(kind), count, n, order == Order::ordered));
          const auto real = comm::traffic_of({kind, count, DType::f32, order, 0, n, 0, kSegment, comm::kRingWindow * kSegment});
          const Received simulated = received(operation(kind, count * size_bytes(DType::f32), n, 1, order));
          EXPECT_EQ(simulated.messages, static_cast<double>(1 + real.received_messages));
          EXPECT_EQ(simulated.bytes, static_cast<double>(real.received_bytes));
        }
      }
    }
  }
}

TEST(VirtualNetwork, SendsChunksStraightToTheirOwnersInOrderedSums) {
  // Two messages leave each port one after the other and arrive at the other end as they left: L (fingerprint) + L + 2 C/B.
  const auto op = operation(CollectiveKind::reduce_scatter, 3000, 3, 1, Order::ordered);
  for (const int64_t done : done_times(equal_links(1e9, 100e-9), op, {0, 0, 0})) EXPECT_EQ(done, 2 * 100 + 2 * 1000);
  // An all-reduce gathers the result.
  const auto both = operation(CollectiveKind::all_reduce, 3000, 3, 1, Order::ordered);
  for (const int64_t done : done_times(equal_links(1e9, 100e-9), both, {0, 0, 0})) EXPECT_EQ(done, 2 * 100 + 2 * 1000 + 2 * 1100);
}

TEST(VirtualNetwork, ReceivingCostsItsPrice) {
  // A fingerprint and two messages of 800 bytes, each received before the next can be sent on.
  const auto op = operation(CollectiveKind::all_reduce, 1600, 2);
  for (const int64_t done : done_times(equal_links(1e9, 100e-9), op, {0, 0}, {.message_ns = 40, .byte_ns = 0.1}))
    EXPECT_EQ(done, (100 + 40) + 2 * (100 + 800 + 40 + 80));
}

TEST(VirtualNetwork, RanksOfANodeShareItsPort) {
  // Ranks 0 and 1 on a node, 2 and 3 on another: 1 byte/ns and 10 ns inside, 0.1 byte/ns and 500 ns between.
  NetworkSpec n = equal_links(1e9, 10e-9);
  n.between = {.bytes_per_s = 1e8, .latency_s = 500e-9};
  n.nodes = 2;
  // In the ring one rank of a node sends to the other node: it begins after its neighbour's fingerprint and sends a chunk in each of three
  // steps, the last two of which are there before the port is free.
  const int64_t slow = 800 + 500, fast = 80 + 10;
  const auto ring = done_times(n, operation(CollectiveKind::all_gather, 320, 4), {0, 0, 0, 0});
  EXPECT_EQ(*std::ranges::max_element(ring), 10 + 2 * 800 + slow);
  // Neighbours alone know nothing of the slow links.
  EXPECT_EQ(done_times(n, operation(CollectiveKind::all_gather, 160, 2), {0, 0}, {}, 4, 2), (std::vector<int64_t>{10 + fast, 10 + fast}));
  // Ranks 0 and 2, and beside them 1 and 3, through the same ports: the second pair stands behind the first.
  VirtualNetwork shared(n, 4);
  std::vector<int64_t> first(2), second(2);
  const std::vector<int64_t> begin = {0, 0};
  const auto across = operation(CollectiveKind::all_gather, 160, 2, 2);
  shared.run(across, 0, begin, first);
  shared.run(across, 1, begin, second);
  EXPECT_EQ(first, (std::vector<int64_t>{500 + slow, 500 + slow}));
  EXPECT_EQ(second, (std::vector<int64_t>{500 + slow + 800, 500 + slow + 800}));
}

TEST(VirtualNetwork, NothingToMoveTakesFingerprintsOnly) {
  EXPECT_EQ(done_times(equal_links(1e9, 100e-9), operation(CollectiveKind::all_reduce, 0, 3), {0, 5, 0}),
            (std::vector<int64_t>{100, 100, 105}));
  EXPECT_EQ(done_times(equal_links(1e9, 100e-9), operation(CollectiveKind::all_reduce, 800, 1), {42}), (std::vector<int64_t>{42}));
}

// --- steps, by hand ---

// Two intervals of forward and backward, the second of which another rank may spend longer on; one all-gather issued between them and
// waited for at the end of the second; then a third interval that belongs to nobody.
struct ByHand {
  static constexpr ScriptItem forward{Kind::compute, 0, trace::Activity::forward};
  static constexpr ScriptItem backward{Kind::compute, 1, trace::Activity::backward};
  static constexpr ScriptItem end{Kind::compute, 2, trace::Activity::other};
  static ScriptItem issue(int64_t operation) { return {Kind::issue, operation, trace::Activity::backward}; }
  static ScriptItem wait(int64_t operation) { return {Kind::wait, operation, trace::Activity::backward}; }

  RecordedRun run;
  StepScript script;
  SimulationOptions options;

  explicit ByHand(int recorded_ranks, int ranks, std::vector<std::vector<double>> intervals_us) {
    script.intervals = {
        {"backward", StepScript::Scale::samples}, {"end", StepScript::Scale::samples}, {kStepEnd, StepScript::Scale::fixed}};
    script.items = {forward, issue(0), backward, wait(0), end};
    script.batch = 12;
    script.items_per_sample = 10;
    run.ranks = recorded_ranks;
    run.threads = 1;
    run.cores = 2;
    run.script = script;
    run.script.ranks = recorded_ranks;
    for (const auto& of_rank : intervals_us) {
      RecordedStep step;
      for (const double us : of_rank) step.intervals_ns.push_back(us * kUs);
      step.update_ns = 1000 * kUs;
      step.updated_elements = 100;
      run.steps.push_back({step});
    }
    set_ranks(ranks);
    options.network = equal_links(1e9, 0);
  }
  void set_ranks(int ranks) {
    script.ranks = ranks;
    // Over N ranks chunks of 10,000 bytes: (N-1) 10 us.
    script.operations = {operation(CollectiveKind::all_gather, static_cast<uint64_t>(10'000 * ranks), ranks)};
  }
  // In us, of the step after the first.
  StepTiming rank(int r) const {
    const StepTiming t = simulate(run, script, options).ranks.at(static_cast<size_t>(r)).at(0);
    return {t.step_ms * 1e3, t.compute_ms * 1e3, t.exposed_ms * 1e3, t.communication_ms * 1e3, t.hidden_ms * 1e3};
  }
};

TEST(Simulation, HidesACollectiveBehindCompute) {
  const ByHand hand(2, 2, {{20, 30, 5}, {20, 30, 5}});
  const StepTiming t = hand.rank(0);
  EXPECT_NEAR(t.step_ms, 55, 1e-9);
  EXPECT_NEAR(t.compute_ms, 50, 1e-9);
  EXPECT_NEAR(t.exposed_ms, 0, 1e-9);
  EXPECT_NEAR(t.other_ms(), 5, 1e-9);
  EXPECT_NEAR(t.communication_ms, 10, 1e-9);
  EXPECT_NEAR(t.hidden_fraction(), 1, 1e-9);
  EXPECT_NEAR(simulate(hand.run, hand.script, hand.options).tokens_per_s, 120 / 55e-6, 1);
}

TEST(Simulation, WaitsForWhatComputeDoesNotHide) {
  const ByHand hand(2, 2, {{20, 4, 5}, {20, 4, 5}});
  const StepTiming t = hand.rank(1);
  EXPECT_NEAR(t.step_ms, 20 + 10 + 5, 1e-9);
  EXPECT_NEAR(t.exposed_ms, 6, 1e-9);
  EXPECT_NEAR(t.hidden_ms, 4, 1e-9);
}

TEST(Simulation, WaitsForTheSlowestRank) {
  // Rank 1 issues 15 us later; both have it 10 us after. Then both begin the next step together, with rank 1's gap.
  const ByHand hand(2, 2, {{20, 4, 5}, {35, 4, 5}});
  EXPECT_NEAR(hand.rank(0).step_ms, 35 + 10 + 5, 1e-9);
  EXPECT_NEAR(hand.rank(0).exposed_ms, 15 + 6, 1e-9);
  EXPECT_NEAR(hand.rank(0).communication_ms, 10, 1e-9);  // from the last to begin
  EXPECT_NEAR(hand.rank(1).exposed_ms, 6, 1e-9);
}

TEST(Simulation, ASlowRankCostsWhatTheLinkDoesNotHide) {
  // As above, rank 1 is 15 us late: all of that shows.
  ByHand hand(2, 2, {{20, 4, 5}, {35, 4, 5}});
  hand.run.network = hand.options.network;
  hand.run.script.operations = hand.script.operations;
  const Stragglers slow{.ranks = {{1, 0.044}}, .usual_rank = 0, .usual_ms = 0.029, .saved_ms = {}, .not_simulated = {}};
  EXPECT_NEAR(saved_by_usual_speed(hand.run, slow), 0.015, 1e-9);
  // Late after the transfer has begun, beside its 10 us: 4 us of these 10 remain to be waited for.
  hand.run.steps[1][0].intervals_ns = {20 * kUs, 10 * kUs, 5 * kUs};
  EXPECT_NEAR(saved_by_usual_speed(hand.run, slow), 0, 1e-9);
  hand.run.steps[1][0].intervals_ns = {20 * kUs, 14 * kUs, 5 * kUs};
  EXPECT_NEAR(saved_by_usual_speed(hand.run, slow), 0.004, 1e-9);
}

TEST(Simulation, SoftwareCostsAreAdded) {
  ByHand hand(2, 2, {{20, 4, 5}, {20, 4, 5}});
  hand.run.costs = {.issue_ns = 1 * kUs, .pickup_ns = 2 * kUs, .wake_ns = 3 * kUs, .message = {}, .work = {}};
  hand.options.message = {.message_ns = 500, .byte_ns = 0};
  // Issued at 21, taken up at 23, a fingerprint and a message received, done at 34, awake at 37.
  EXPECT_NEAR(hand.rank(0).step_ms, 37 + 5, 1e-9);
  EXPECT_NEAR(hand.rank(0).compute_ms, 20 + 1 + 4, 1e-9);
}

TEST(Simulation, OperationsOfARankRunOneAfterTheOther) {
  ByHand hand(2, 2, {{20, 4, 5}, {20, 4, 5}});
  hand.script.operations.push_back(hand.script.operations[0]);
  hand.script.items = {hand.forward, hand.issue(0), hand.issue(1), hand.backward, hand.wait(1), hand.wait(0), hand.end};
  EXPECT_NEAR(hand.rank(0).step_ms, 20 + 20 + 5, 1e-9);
  EXPECT_NEAR(hand.rank(0).communication_ms, 20, 1e-9);
}

TEST(Simulation, APublicationIsWaitedForInTheNextStep) {
  ByHand hand(2, 2, {{20, 4, 5}, {20, 4, 5}});
  // Issued after 24 us of a step, waited for in the next one after 2 of its first 20 us: nothing is left of its 10 us there.
  hand.script.items = {hand.forward, hand.wait(-1), hand.backward, hand.issue(0), hand.end};
  EXPECT_NEAR(hand.rank(0).exposed_ms, 0, 1e-9);
  // Waited for at once it shows, less the 5 us that the step had left and the gap of 1 us between steps.
  hand.script.items = {hand.wait(-1), hand.forward, hand.backward, hand.issue(0), hand.end};
  for (auto& rank : hand.run.steps) rank[0].gap_ns = 1 * kUs;
  EXPECT_NEAR(hand.rank(0).exposed_ms, 10 - 5 - 1, 1e-9);
  EXPECT_NEAR(hand.rank(0).step_ms, 4 + 20 + 4 + 5, 1e-9);
}

TEST(Simulation, ComputeFollowsTheShareOfTheBatchAndTheShard) {
  // 12 samples over 2 ranks were recorded; over 4 ranks each has half. Rank 3 takes the times of rank 1.
  ByHand hand(2, 4, {{20, 40, 5}, {30, 40, 5}});
  hand.script.items = {hand.forward, hand.backward, {Kind::update, 25, trace::Activity::optimizer}, hand.end};
  hand.script.operations.clear();
  EXPECT_NEAR(hand.rank(0).compute_ms, 10 + 20 + 250, 1e-9);  // 100 elements took 1000 us
  EXPECT_NEAR(hand.rank(3).compute_ms, 15 + 20 + 250, 1e-9);
  EXPECT_NEAR(hand.rank(3).step_ms, 285 + 5, 1e-9);
  hand.script.intervals[2].scale = hand.run.script.intervals[2].scale = StepScript::Scale::shard;
  EXPECT_NEAR(hand.rank(3).step_ms, 285 + 2.5, 1e-9);
  // Five ranks: shares of 3, 3, 2, 2, 2.
  hand.script.ranks = 5;
  EXPECT_NEAR(hand.rank(0).compute_ms, 10 + 20 + 250, 1e-9);
  EXPECT_NEAR(hand.rank(4).compute_ms, (20.0 + 40) / 3 + 250, 1e-9);
}

TEST(Simulation, RanksOfAMachineShareItsCores) {
  // 48 samples, so that each of 4 ranks computes as long as the two recorded ones.
  ByHand hand(2, 4, {{20, 30, 5}, {20, 30, 5}});
  hand.script.batch = 24;
  EXPECT_NEAR(hand.rank(0).step_ms, 30 + 20 + 5, 1e-9);  // 30 us of transfer end with the 30 us of compute
  hand.options.same_machine = true;
  // Two on each of two cores: all of them twice as slow; the collective takes as long as before.
  for (const int r : {0, 3}) {
    EXPECT_NEAR(hand.rank(r).compute_ms, 100, 1e-6);
    EXPECT_NEAR(hand.rank(r).step_ms, 110, 1e-6);
    EXPECT_NEAR(hand.rank(r).exposed_ms, 0, 1e-6);
  }
  // As many cores as ranks: nobody is slowed down.
  hand.run.cores = 4;
  EXPECT_NEAR(hand.rank(0).step_ms, 55, 1e-9);
  // Three ranks on two cores: two share one, until the third waits and its core takes one over.
  hand.run.cores = 2;
  hand.set_ranks(3);
  hand.script.batch = 18;
  hand.script.items = {hand.forward, hand.issue(0), hand.wait(0), hand.end};
  hand.run.script.batch = 12;
  // After a collective rank 1 has a core for itself, ends its last 5 us at 5 and its first 20 us of the next step at 25. The other two are
  // at half speed: at 25 they have 12.5 us left, which each now has a core for. They issue at 37.5, and 20 us later all are done.
  StepTiming t = simulate(hand.run, hand.script, hand.options).ranks[1][0];
  EXPECT_NEAR(t.exposed_ms * 1e3, 37.5 + 20 - 25, 1e-6);
}

TEST(Simulation, ProgressThreadsTakeFromMainThreadsWhereNoCoreIsSpare) {
  // A fingerprint and a message take 4 us of a core while the transfer lasts 10 us.
  ByHand hand(2, 2, {{20, 30, 5}, {20, 30, 5}});
  hand.run.ranks_per_machine = 2;
  hand.run.costs.work = {.message_ns = 2 * kUs, .byte_ns = 0};
  EXPECT_NEAR(hand.rank(0).compute_ms, 54, 1e-9);
  EXPECT_NEAR(hand.rank(1).step_ms, 59, 1e-9);
  hand.run.cores = 3;
  EXPECT_NEAR(hand.rank(0).step_ms, 55, 1e-9);
  hand.run.cores = 2;
  // What a rank waits through costs it nothing: 4 us at a rate of 0.6, then until 30.
  for (auto& rank : hand.run.steps) rank[0].intervals_ns[1] = 4 * kUs;
  EXPECT_NEAR(hand.rank(0).compute_ms, 20 + 4 / 0.6, 1e-9);
  EXPECT_NEAR(hand.rank(0).step_ms, 35, 1e-9);
  // Rank 1 comes late, in the middle of what rank 0 computes.
  hand.run.steps[0][0].intervals_ns = {20.0 * kUs, 30.0 * kUs, 5.0 * kUs};
  hand.run.steps[1][0].intervals_ns = {35.0 * kUs, 10.0 * kUs, 5.0 * kUs};
  EXPECT_NEAR(hand.rank(0).step_ms, 59, 1e-9);
  EXPECT_NEAR(hand.rank(1).step_ms, 54, 1e-9);
  // Four ranks on two cores: three messages and a fingerprint, 8 us of work more for each, at half speed.
  ByHand four(2, 4, {{20, 30, 5}, {20, 30, 5}});
  four.script.batch = 24;
  four.options.same_machine = true;
  four.run.costs.work = {.message_ns = 2 * kUs, .byte_ns = 0};
  for (const int r : {0, 3}) EXPECT_NEAR(four.rank(r).step_ms, 110 + 16, 1e-6);
  // One rank alone moves nothing, whatever others moved.
  hand.set_ranks(1);
  EXPECT_NEAR(hand.rank(0).compute_ms, 2 * 50, 1e-9);
}

TEST(Simulation, ASlowerLinkIsNeverFaster) {
  ByHand hand(2, 4, {{20, 30, 5}, {35, 10, 5}});
  hand.script.operations.push_back(operation(CollectiveKind::all_reduce, 4096, 4));
  hand.script.items = {hand.wait(-2), hand.forward, hand.issue(0), hand.backward, hand.issue(1), hand.wait(1), hand.end};
  double before = 0;
  for (const double bytes_per_s : {1e12, 1e10, 1e9, 3e8, 1e8, 1e7}) {
    hand.options.network = equal_links(bytes_per_s, 1e-6);
    const double now = simulate(hand.run, hand.script, hand.options).timing.step_ms;
    EXPECT_GE(now, before) << bytes_per_s;
    before = now;
  }
  EXPECT_GT(before, 1);
}

TEST(Simulation, RefusesAnotherJobsScript) {
  ByHand hand(2, 2, {{20, 4, 5}, {20, 4, 5}});
  hand.script.intervals.pop_back();
  EXPECT_THROW(simulate(hand.run, hand.script, hand.options), ConfigError);
}

// --- recorded runs ---

class Recorded : public ::testing::Test {
 protected:
  Recorded() {
    root_ = fs::temp_directory_path() /
            fmt::format("rz_simulate_{}_{}", getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(root_);
    std::ofstream text(root_ / "text");
    for (int i = 0; i < 400; ++i) text << "in the beginning was line " << i << "\n";
  }
  ~Recorded() override { fs::remove_all(root_); }

  ringzero::Job job(const std::vector<std::string>& overrides = {}) const {
    std::vector<std::string> all = {"text.path=" + (root_ / "text").string()};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return parse_job(
        "transformer { layers: 3 width: 24 heads: 3 context: 16 } text {} training { steps: 5 batch: 8 threads: 1 evaluate_sequences: 4 }",
        "tiny.textproto", all);
  }

  std::string path(const std::string& name) const { return (root_ / name).string(); }

  RunTrace run(const ringzero::Job& j, int ranks, const std::string& out) const {
    test::run_on_ranks(ranks, [&](comm::Communicator& comm) { train(j, {.out = path(out), .resume = false, .json = false}, comm); },
                       {.network = network_of(j)});
    return read_run_trace(path(out));
  }

  fs::path root_;
};

std::string describe(const StepScript& s) {
  std::string out;
  for (const ScriptItem& item : s.items) {
    constexpr const char* kNames[] = {"compute until", "update", "issue", "wait"};
    out += kNames[static_cast<size_t>(item.kind)];
    out += item.kind == Kind::compute ? " " + s.intervals[static_cast<size_t>(item.value)].mark : fmt::format(" {}", item.value);
    out += "\n";
  }
  for (const ScriptOperation& o : s.operations)
    out += fmt::format("{} {} {} {} bytes, {} ranks {} apart\n", o.name, comm::name(o.kind), comm::name(o.order), o.bytes, o.group_size,
                       o.group_stride);
  return out;
}

// A dry run must do what ranks do, in every configuration that a simulation may be asked about.
TEST_F(Recorded, DryRunsComeWithTheEventsOfRealRuns) {
  std::vector<std::vector<std::string>> configurations;
  for (const char* stage : {"0", "1", "2", "3"})
    for (const char* bucket : {"0", "0.0001", "0.01", "100"})
      configurations.push_back({fmt::format("sharding.stage={}", stage), fmt::format("sharding.bucket_mb={}", bucket)});
  for (const char* more :
       {"sharding.overlap=false", "sharding.prefetch=0", "sharding.prefetch=2", "training.accumulate=2", "sharding.group_size=2",
        "sharding.reduction=ORDERED", "training.recompute=FULL", "training.precision=BF16", "training.clip_norm=0"})
    for (const char* stage : {"1", "3"}) configurations.push_back({fmt::format("sharding.stage={}", stage), more});
  StepScript marks;
  for (const auto& configuration : configurations) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(configuration, " ")));
    const ringzero::Job j = job(configuration);
    const RunTrace trace = run(j, 4, fmt::format("run{}", &configuration - configurations.data()));
    const StepScript dry = dry_script(j, 4);
    for (const int r : {0, 3}) {
      const RankTrace& t = trace.ranks[static_cast<size_t>(r)];
      const StepScript real = script_of(t.steps[t.steps.size() - 2], t.steps.back(), t.names, t.groups, dry.buckets);
      ASSERT_EQ(describe(real), describe(dry)) << "rank " << r;
      EXPECT_EQ(real.intervals, dry.intervals);
    }
    // Stages, buckets and the rest do not move the marks.
    const bool own_marks = configuration.back().starts_with("training.accumulate") ||
                           configuration.back().starts_with("training.recompute") || configuration.back().starts_with("sharding.reduction");
    if (marks.intervals.empty()) marks = dry;
    EXPECT_EQ(dry.intervals == marks.intervals, !own_marks);
  }
  EXPECT_EQ(dry_script(job(), 16384).intervals, marks.intervals);
}

// A publication is waited for by the layer that reads it, not by its whole unit: with a bucket for each tensor there is compute between the
// waits.
TEST_F(Recorded, ForwardWaitsForEachLayersWeights) {
  const StepScript script = dry_script(job({"sharding.stage=1", "sharding.bucket_mb=0.0001"}), 4);
  std::vector<size_t> waits;  // places among the items
  std::set<std::string> layers;
  for (size_t i = 0; i < script.items.size(); ++i) {
    const ScriptItem& item = script.items[i];
    if (item.kind != ScriptItem::Kind::wait || item.value >= 0 || item.activity != trace::Activity::forward) continue;
    const std::string& name = script.operations[static_cast<size_t>(item.value + std::ssize(script.operations))].name;
    if (!name.starts_with("blocks.0")) continue;
    waits.push_back(i);
    layers.insert(name);
  }
  ASSERT_GT(layers.size(), 3u);
  int computes = 0;
  for (size_t i = waits.front(); i < waits.back(); ++i) computes += script.items[i].kind == ScriptItem::Kind::compute;
  EXPECT_GE(computes, 3);  // norm, attention, norm, and the layers of the MLP come one after the other
}

// The events of a dry run, given times: every interval between marks takes 100 us, but none that ends where backward leaves a unit; an
// issue takes 3 us; a collective ends 50 us after it was issued or after the one before; an update takes 10 ns an element.
class Synthetic {
 public:
  Synthetic(const ringzero::Job& job, int ranks) {
    std::unordered_set<std::string> buckets = dry_script(job, ranks).buckets;
    ringzero::Job j = job;
    j.mutable_training()->set_trace_steps(6);
    for (int r = 0; r < ranks; ++r) {
      const RankContextScope scope(RankContext::make_dry(r));
      comm::Communicator comm = comm::make_dry_communicator(r, ranks);
      std::vector<std::string> notes;
      Session session(j, make_dry_task(j, notes), comm);
      for (int64_t step = 0; step < 6; ++step) session.train_step(step);
      session.recorder()->collect();
      RankTrace t = rank_trace_of(*session.recorder());
      t.rank = r;
      t.size = ranks;
      t.cores = 8;
      t.host = "here";
      t.job_text = effective_text(j);
      int64_t sequence = 0;
      for (trace::Step& step : t.steps) {
        give_times(step, t.names, buckets);
        for (trace::Operation& o : step.operations) o.sequence = static_cast<uint64_t>(sequence++);
      }
      now_ = free_ = 1'000'000;
      trace.ranks.push_back(std::move(t));
    }
    for (const trace::Step& step : trace.ranks[0].steps) trace.steps.push_back(step.step);
  }

  RunTrace trace;
  static int64_t duration_before(const std::string& mark) {
    return mark.empty() || mark == "updated" || mark == "backward " ? 0 : 100 * kUs;
  }

 private:
  // Main threads have their cores for themselves.
  void give_times(trace::Step& step, const std::vector<std::string>& names, const std::unordered_set<std::string>& buckets) {
    step.begin_ns = now_;
    std::map<int64_t, trace::Operation*> operations;
    for (trace::Operation& o : step.operations) operations[o.number] = &o;
    const auto pieces = pieces_of(step, names, buckets);
    auto piece = pieces.begin();
    int64_t updating = 0;
    for (trace::Event& e : step.events) {
      if (e.kind == trace::Event::Kind::bucket_ready) {
        e.begin_ns = e.end_ns = now_;
        continue;
      }
      if (e.kind == trace::Event::Kind::activity || e.kind == trace::Event::Kind::issue) now_ += 10 * std::exchange(updating, 0);
      // Between the updates of two buckets comes an event that is none.
      const bool is_piece = piece != pieces.end() && piece->activity == e.activity;
      if (is_piece) now_ += duration_before(piece->mark);
      if (is_piece && piece->kind == StepPiece::Kind::update) updating = piece->elements;
      e.begin_ns = e.end_ns = now_;
      if (e.kind == trace::Event::Kind::issue) {
        trace::Operation& o = *operations.at(e.value);
        o.queued_ns = now_;
        o.started_ns = std::max(now_, free_);
        o.done_ns = free_ = o.started_ns + 50 * kUs;
        done_[e.value] = o.done_ns;
        now_ += 3 * kUs;
      }
      if (e.kind == trace::Event::Kind::wait) e.end_ns = now_ = std::max(now_, done_.at(e.value));
      if (is_piece) ++piece;
    }
    now_ += 100 * kUs;
    step.end_ns = now_;
    step.cpu_ns = step.end_ns - step.begin_ns;
    for (const trace::Event& e : step.events)
      if (e.kind == trace::Event::Kind::wait) step.cpu_ns -= e.end_ns - e.begin_ns;
    now_ += 7 * kUs;
  }

  std::map<int64_t, int64_t> done_;
  int64_t now_ = 1'000'000;
  int64_t free_ = 0;
};

TEST_F(Recorded, KnowsWhatWasComputedBetweenMarks) {
  for (const char* stage : {"0", "1", "3"}) {
    SCOPED_TRACE(stage);
    const ringzero::Job j = job({fmt::format("sharding.stage={}", stage), "communication.link=1Gbit,10us"});
    const Synthetic synthetic(j, 2);
    const RecordedRun run = recorded_run(synthetic.trace);
    EXPECT_EQ(run.ranks, 2);
    EXPECT_EQ(run.samples_of(1), 4);
    EXPECT_EQ(run.costs.issue_ns, 3000);
    EXPECT_EQ(run.costs.wake_ns, 0);
    ASSERT_EQ(run.steps.size(), 2u);
    ASSERT_EQ(run.steps[1].size(), 4u);  // of six, without the first two
    for (const RecordedStep& step : run.steps[1]) {
      ASSERT_EQ(step.intervals_ns.size(), run.script.intervals.size());
      for (size_t i = 0; i < step.intervals_ns.size(); ++i) {
        const std::string& mark = run.script.intervals[i].mark;
        EXPECT_EQ(step.intervals_ns[i], static_cast<double>(Synthetic::duration_before(mark))) << mark;
      }
      EXPECT_EQ(step.update_ns, 10.0 * static_cast<double>(step.updated_elements));
      EXPECT_GT(step.updated_elements, run.script.parameter_bytes / 4 / (*stage == '0' ? 1 : 2) - 1);
      EXPECT_EQ(step.gap_ns, 7'000.0);
    }
  }
}

TEST_F(Recorded, ProgressThreadsWorkIsNotTheMainThreadsCompute) {
  Synthetic synthetic(job({"communication.link=1Gbit,10us"}), 2);
  for (RankTrace& t : synthetic.trace.ranks)
    for (trace::Step& step : t.steps)
      for (trace::Operation& o : step.operations) o.cpu_ns = (o.done_ns - o.started_ns) / 2;
  const auto computed = [&] {
    std::vector<double> sums;
    const RecordedRun run = recorded_run(synthetic.trace);
    for (const RecordedStep& step : run.steps[1]) {
      sums.push_back(step.update_ns);
      for (const double ns : step.intervals_ns) sums.back() += ns;
    }
    return sums;
  };
  const auto spare = computed();
  for (RankTrace& t : synthetic.trace.ranks) t.cores = 2;
  const auto shared = computed();
  // Both ranks' collectives run at the same times, and take half a core each: main threads had the other half.
  const auto& steps = synthetic.trace.ranks[1].steps;
  for (size_t i = 0; i < spare.size(); ++i) {
    const trace::Step& step = steps[i + 2];
    std::vector<Span> waits;
    for (const trace::Event& e : step.events)
      if (e.kind == trace::Event::Kind::wait) waits.push_back({e.begin_ns, e.end_ns});
    double beside = 0;
    for (const trace::Operation& o : step.operations)
      beside += static_cast<double>(o.done_ns - o.started_ns - overlap_ns(waits, {o.started_ns, o.done_ns}));
    EXPECT_GT(beside, 100 * kUs);
    // Where an interval is nothing but issuing, half of that would leave less than nothing.
    EXPECT_GE(shared[i], spare[i] - beside / 2 - 1);
    EXPECT_LE(shared[i], spare[i] - beside / 2 + 3.0 * kUs * static_cast<double>(step.operations.size()));
  }
  EXPECT_GT(recorded_run(synthetic.trace).costs.work.message_ns, 0);
}

// While all main threads wait, progress threads may want more than there is: nobody computes then.
TEST_F(Recorded, ProgressThreadsOfFewCoresLeaveNumbers) {
  Synthetic synthetic(job({"communication.link=1Gbit,10us"}), 3);
  for (RankTrace& t : synthetic.trace.ranks) {
    t.cores = 2;
    for (trace::Step& step : t.steps)
      for (trace::Operation& o : step.operations) o.cpu_ns = o.done_ns - o.started_ns;
  }
  const RecordedRun run = recorded_run(synthetic.trace);
  for (const auto& rank : run.steps)
    for (const RecordedStep& step : rank)
      for (const double ns : step.intervals_ns) EXPECT_TRUE(ns >= 0 && ns < 1e12) << ns;
}

// What other programs took from two ranks on two cores they do not take from one: they have the idle core then.
TEST_F(Recorded, OtherProgramsGoToIdleCores) {
  const auto link = "communication.link=1Gbit,10us";
  const auto simulated_ms = [&](int cores, int64_t of_cpu, int ranks) {
    Synthetic synthetic(job({link}), 2);
    for (RankTrace& t : synthetic.trace.ranks) {
      t.cores = cores;
      for (trace::Step& step : t.steps) {
        step.cpu_ns = step.cpu_ns * of_cpu / 4;
        for (trace::Operation& o : step.operations) o.cpu_ns = 0;
      }
    }
    const RecordedRun run = recorded_run(synthetic.trace);
    return simulate(run, dry_script(job({link}), ranks), {.network = equal_links(1e15, 0), .same_machine = true}).timing.step_ms;
  };
  const double alone = simulated_ms(2, 4, 1);
  constexpr double kIssuing = 0.02;  // its 3 us each do not shrink
  EXPECT_NEAR(simulated_ms(2, 2, 1), alone / 2, kIssuing * alone);
  EXPECT_EQ(simulated_ms(3, 2, 1), alone);                   // there was a spare core before
  EXPECT_EQ(simulated_ms(2, 2, 2), simulated_ms(2, 4, 2));   // and there is none now
  // Ranks that took turns: what each used counts, not how evenly they should have shared.
  EXPECT_NEAR(simulated_ms(1, 1, 1), simulated_ms(1, 2, 1) / 2, kIssuing * alone);
}

TEST_F(Recorded, ReplaysWhatItRecorded) {
  // Nothing is exposed: there is nothing but compute, and every rank computes the same.
  const Synthetic synthetic(job({"communication.link=1Gbit,10us"}), 2);
  const RecordedRun run = recorded_run(synthetic.trace);
  const SimulatedRun replayed = simulate(run, run.script, {.network = equal_links(1e15, 0)});
  EXPECT_NEAR(replayed.timing.compute_ms, run.timing.compute_ms, 1e-6);
  EXPECT_NEAR(replayed.timing.step_ms, run.timing.step_ms, 1e-6);
  EXPECT_LE(replayed.p10_step_ms, replayed.timing.step_ms);
  EXPECT_GE(replayed.p90_step_ms, replayed.timing.step_ms);
  EXPECT_GT(replayed.p10_step_ms, 0.9 * replayed.timing.step_ms);
  // On as many ranks with the same samples each, compute stays too.
  StepScript wide = dry_script(job({"training.batch=32", "communication.link=1Gbit,10us"}), 8);
  EXPECT_NEAR(simulate(run, wide, {.network = equal_links(1e15, 0)}).timing.compute_ms, run.timing.compute_ms, 1e-6);
}

TEST(RecordedCollectives, SayWhatAMessageAndAByteTakeOfACore) {
  // Scalars: two turns and a fingerprint. 600,000 bytes on 3 ranks: 2 x 2 chunks of 200,000.
  const auto segments = static_cast<double>((200'000 + comm::ProgressOptions{}.segment_bytes - 1) / comm::ProgressOptions{}.segment_bytes);
  const auto small = operation(CollectiveKind::all_reduce, 24, 3), large = operation(CollectiveKind::all_reduce, 600'000, 3);
  EXPECT_EQ(received(small).messages, 3);
  EXPECT_EQ(received(small).bytes, 48);
  EXPECT_EQ(received(large).messages, 1 + 4 * segments);
  EXPECT_EQ(received(large).bytes, 800'000);
  EXPECT_EQ(received(operation(CollectiveKind::reduce_scatter, 600'000, 3)).messages, 1 + 2 * segments);
  EXPECT_EQ(received(operation(CollectiveKind::all_gather, 600'000, 1)).messages, 0);
  const auto took = [](const ScriptOperation& o, double message_ns, double byte_ns) {
    const auto ns = static_cast<int64_t>(received(o).messages * message_ns + received(o).bytes * byte_ns);
    return RecordedCollective{o, 0, {0, 0, 0}, {1, 1, 1}, {ns, ns - 1000, ns + 1000}};
  };
  const MessageCost found = fit_work({took(small, 15'000, 0.5), took(large, 15'000, 0.5)});
  EXPECT_NEAR(found.message_ns, 15'000, 1);
  EXPECT_NEAR(found.byte_ns, 0.5, 1e-4);
  // Nothing is ever won by receiving.
  EXPECT_EQ(fit_work({took(small, 1, 0), took(large, 0, 0.5)}).message_ns, 0);
  EXPECT_NEAR(fit_work({took(large, 15'000, 0)}).message_ns, 15'000, 1);
  EXPECT_EQ(fit_work({}).byte_ns, 0);
}

TEST_F(Recorded, FitsLinksAndCostsThatItWasNotTold) {
  std::vector<RecordedCollective> collectives;
  const NetworkSpec truth = equal_links(2e8, 70e-6);
  const MessageCost cost{.message_ns = 15'000, .byte_ns = 0.4};
  for (const bool priced : {false, true}) {
    collectives.clear();
    VirtualNetwork network(truth, 3, priced ? cost : MessageCost{});
    int64_t now = 0;
    for (const uint64_t bytes : {24, 3000, 60'000, 600'000, 3'000'000}) {
      now += 1'000'000 * kUs;
      RecordedCollective c{operation(CollectiveKind::all_reduce, bytes, 3), 0, {now + 1000, now + 2000, now + 500}, {0, 0, 0}, {0, 0, 0}};
      network.run(c.operation, 0, c.begin_ns, c.done_ns);
      collectives.push_back(c);
    }
    if (priced) {
      const MessageCost found = fit_message_cost(collectives, truth, 3);
      EXPECT_NEAR(found.message_ns, cost.message_ns, 0.1 * cost.message_ns);
      EXPECT_LT(network_error(collectives, truth, 3, found), 0.02);
    } else {
      const FittedNetwork found = fit_link(collectives, 3);
      EXPECT_NEAR(found.link.latency_s, 70e-6, 3e-6);
      EXPECT_NEAR(found.link.bytes_per_s, 2e8, 0.05 * 2e8);
      EXPECT_LT(found.error, 0.02);
      EXPECT_EQ(found.operations, 5);
    }
  }
}

TEST_F(Recorded, AnswersQuestionsAboutARealRun) {
  RecordedRun recorded = recorded_run(run(job({"communication.link=1Gbit,20us"}), 2, "run"));
  // What progress threads do costs nothing while main threads wait for slow links: with it a faster link may be slower.
  recorded.costs.work = {};
  Predictor predictor(std::move(recorded));
  const Prediction same = predictor.predict({});
  EXPECT_EQ(same.ranks, 2);
  EXPECT_EQ(same.batch, 8);
  EXPECT_GT(same.run.timing.step_ms, 0);
  const Sweep links = run_sweep(predictor, {}, "link");
  // The median step of one link may be another recorded step than that of the next.
  for (size_t i = 1; i < links.points.size(); ++i)
    EXPECT_LE(links.points[i].prediction.run.timing.step_ms, 1.01 * links.points[i - 1].prediction.run.timing.step_ms)
        << links.points[i].label;
  // Links of their own keep their rate.
  const Sweep with_slow = run_sweep(predictor, {.link = "1Gbit,20us;0>1=1Mbit,20us"}, "link=1Gbit,10Gbit");
  for (const SweepPoint& p : with_slow.points) EXPECT_GT(p.prediction.run.timing.step_ms, 10 * links.points.back().prediction.run.timing.step_ms) << p.label;
  const Sweep buckets = run_sweep(predictor, {}, "bucket");
  EXPECT_GT(buckets.points.front().prediction.collectives, buckets.points.back().prediction.collectives);
  EXPECT_EQ(buckets.points.back().prediction.collectives, 3u);  // the outermost unit's, all others', scalars
  const Sweep stages = run_sweep(predictor, {.ranks = 4}, "stage=1,3");
  EXPECT_EQ(stages.points[1].prediction.stage, 3);
  const Sweep ranks = run_sweep(predictor, with({}, "training.batch=64"), "ranks=1,2,64,16384");
  EXPECT_EQ(ranks.points[0].prediction.run.timing.communication_ms, 0);
  EXPECT_EQ(ranks.points[3].prediction.batch, 16384);
  EXPECT_THAT(ranks.points[3].prediction.notes, ::testing::Contains(HasSubstr("training.batch is 64")));
  const auto best = predictor.best_bucket({});
  for (const SweepPoint& p : buckets.points) EXPECT_GE(p.prediction.run.timing.step_ms * 1.006, best.prediction.run.timing.step_ms);

  SimulationReport report{same, ranks.points[2].prediction, {links, buckets, stages, ranks}, best.prediction};
  const auto json = simulation_json(predictor.recorded(), report);
  EXPECT_EQ(json.at("simulated").at("ranks"), 64);
  EXPECT_EQ(json.at("sweeps").at("link").size(), links.points.size());
  const std::string text = simulation_text(predictor.recorded(), report);
  EXPECT_THAT(text, HasSubstr("over bucket"));
  EXPECT_THAT(text, HasSubstr("100Gbit,20us"));
  for (const Sweep& sweep : report.sweeps) {
    const Drawing drawing = draw_sweep("title", sweep);
    EXPECT_THAT(drawing.svg(), HasSubstr(fmt::format(">{}<", sweep.over == SweepOver::bucket ? "bucket, MiB" : name(sweep.over))));
    EXPECT_EQ(drawing.png().substr(1, 3), "PNG");
  }
}

TEST_F(Recorded, SaysWhatItCannotAnswer) {
  const auto error = [](const auto& f) {
    try {
      f();
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(error([&] { read_run_trace(path("nowhere")); }), HasSubstr("holds no trace"));
  const RunTrace short_run = run(job({"training.steps=2"}), 1, "short");
  EXPECT_THAT(error([&] { recorded_run(short_run); }), HasSubstr("needs one after the first 2"));
  RunTrace alone = run(job(), 1, "alone");
  Predictor predictor(recorded_run(alone));
  EXPECT_GT(predictor.predict({}).run.timing.step_ms, 0);
  EXPECT_THAT(error([&] { predictor.predict({.ranks = 2}); }), HasSubstr("needs a link"));
  EXPECT_GT(predictor.predict({.ranks = 2, .link = "1Gbit"}).run.timing.communication_ms, 0);
  EXPECT_THAT(error([&] { predictor.predict({.ranks = 3, .link = "1Gbit", .nodes = 2}); }), HasSubstr("nodes is 2"));
  EXPECT_THAT(error([&] { predictor.predict({.link = "fast"}); }), HasSubstr("link is 'fast'"));
  EXPECT_THAT(error([&] { predictor.predict(with({}, "sharding.stage=4")); }), HasSubstr("sharding.stage is 4"));
  EXPECT_THAT(error([&] { predictor.predict(with({}, "transformer.layers=4")); }), HasSubstr("may differ"));
  for (const char* sweep : {"colour", "", "ranks=", "ranks=two", "ranks=0", "link=fast", "bucket=x", "stage=7"})
    EXPECT_NE(error([&] { run_sweep(predictor, {.link = "1Gbit"}, sweep); }), "no error") << sweep;
  // Two micro-batches of exact sums, one on each of two ranks: of more ranks some would have none.
  Predictor exact(recorded_run(run(job({"sharding.reduction=EXACT", "training.micro_batch=4"}), 2, "exact")));
  EXPECT_GT(exact.predict({.link = "1Gbit"}).run.timing.step_ms, 0);
  for (const int ranks : {3, 4})
    EXPECT_THAT(error([&] { exact.predict({.ranks = ranks, .link = "1Gbit"}); }),
                HasSubstr(fmt::format("2 micro-batches of exact sums do not fall evenly on {} ranks", ranks)));
  // A trace of another job than it says.
  alone.ranks[0].job_text = effective_text(job({"transformer.layers=2"}));
  EXPECT_THAT(error([&] { recorded_run(alone); }), HasSubstr("none of the 3 recorded steps"));
}

}  // namespace
}  // namespace rz::tools
