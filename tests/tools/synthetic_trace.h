// Traces written by hand: microseconds of one step of each rank, so that an account can be worked out on paper.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "comm/types.h"
#include "tools/overlap/account.h"
#include "tools/overlap/run_trace.h"

namespace rz::tools {

class SyntheticTrace {
 public:
  static constexpr int64_t kOrigin = 1'000'000'000;  // of the step's microsecond 0, ns
  static constexpr int64_t kLength = 100;            // of the step, us

  explicit SyntheticTrace(int ranks) {
    run_.steps = {0, 1};
    for (int r = 0; r < ranks; ++r) {
      RankTrace t;
      t.rank = r;
      t.size = ranks;
      t.host = "paper";
      t.names = {""};
      t.steps.resize(2);
      t.steps[0].begin_ns = ns(-kLength);
      t.steps[0].end_ns = ns(0);
      t.steps[1].step = 1;
      t.steps[1].begin_ns = ns(0);
      t.steps[1].end_ns = ns(kLength);
      run_.ranks.push_back(std::move(t));
    }
  }

  static int64_t ns(int64_t us) { return kOrigin + us * 1000; }

  // In step 0 instead of step 1 until the next call.
  void in_step(size_t step) { step_ = step; }

  void activity(int rank, int64_t at, trace::Activity activity, const std::string& unit = "") {
    event(rank, {trace::Event::Kind::activity, activity, intern(rank, unit), ns(at), ns(at), 0});
  }
  void bucket_ready(int rank, int64_t at, const std::string& bucket) {
    event(rank, {trace::Event::Kind::bucket_ready, trace::Activity::backward, intern(rank, bucket), ns(at), ns(at), 0});
  }
  // The rank's next collective, of 8 bytes a rank; returns its number. On every rank they must come in the same order.
  int64_t collective(int rank, comm::CollectiveKind kind, const std::string& name, int64_t queued, int64_t started, int64_t done,
                     trace::Activity issuer = trace::Activity::backward) {
    const int64_t number = issued_[rank]++;
    event(rank, {trace::Event::Kind::issue, issuer, trace::kNoName, ns(queued), ns(queued), number});
    trace::Operation o;
    o.number = number;
    o.name = intern(rank, name);
    o.kind = static_cast<uint8_t>(kind);
    o.sequence = static_cast<uint64_t>(number);
    o.bytes = 8 * run_.ranks.size();
    o.sent_bytes = 8 * (run_.ranks.size() - 1);
    o.queued_ns = ns(queued);
    o.started_ns = ns(started);
    o.done_ns = ns(done);
    at(rank).operations.push_back(o);
    return number;
  }
  // A bucket whose gradients are ready when it is queued.
  int64_t reduction(int rank, const std::string& bucket, int64_t queued, int64_t started, int64_t done) {
    bucket_ready(rank, queued, bucket);
    return collective(rank, comm::CollectiveKind::reduce_scatter, bucket, queued, started, done);
  }
  void wait(int rank, int64_t begin, int64_t end, int64_t number) {
    event(rank, {trace::Event::Kind::wait, trace::Activity::backward, trace::kNoName, ns(begin), ns(end), number});
  }

  // Events in the order in which a rank would have recorded them.
  RunTrace& run() {
    for (RankTrace& t : run_.ranks)
      for (trace::Step& step : t.steps) std::ranges::stable_sort(step.events, {}, &trace::Event::end_ns);
    return run_;
  }
  RunAccount account() { return account_run(run()); }
  // Of step 1.
  StepAccount account(int rank) { return account().ranks.at(static_cast<size_t>(rank)).at(0); }

 private:
  trace::Step& at(int rank) { return run_.ranks.at(static_cast<size_t>(rank)).steps.at(step_); }
  void event(int rank, const trace::Event& e) { at(rank).events.push_back(e); }
  uint32_t intern(int rank, const std::string& name) {
    auto& names = run_.ranks.at(static_cast<size_t>(rank)).names;
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) return names.push_back(name), static_cast<uint32_t>(names.size() - 1);
    return static_cast<uint32_t>(found - names.begin());
  }

  RunTrace run_;
  size_t step_ = 1;
  std::map<int, int64_t> issued_;
};

}  // namespace rz::tools
