#include "tools/overlap/step_script.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "comm/dry.h"
#include "runtime/core/error.h"
#include "runtime/core/rank_context.h"
#include "tools/dry_task.h"
#include "tools/session.h"

namespace rz::tools {

namespace {

using trace::Activity;
using trace::Event;

constexpr int64_t kDrySteps = 3;  // from the second on all are alike; waits for the step before's publications included

// Position of `number` among the operations of `step` and the one before.
class Numbers {
 public:
  Numbers(const trace::Step& before, const trace::Step& step) : size_(static_cast<int64_t>(step.operations.size())) {
    RZ_CHECK(before.operations.size() == step.operations.size(), "steps of {} and {} collectives", before.operations.size(),
             step.operations.size());
    for (const trace::Step* s : {&before, &step})
      for (const trace::Operation& o : s->operations) first_ = std::min(first_, o.number);
  }
  int64_t operator()(int64_t number) const { return number - first_ - size_; }

 private:
  int64_t size_;
  int64_t first_ = std::numeric_limits<int64_t>::max();
};

ScriptOperation operation_of(const trace::Operation& o, const std::vector<std::string>& names, const std::vector<int>& members) {
  ScriptOperation out;
  out.name = names[o.name];
  out.kind = static_cast<comm::CollectiveKind>(o.kind);
  out.order = static_cast<comm::Order>(o.order);
  out.bytes = o.bytes;
  out.group_size = static_cast<int>(members.size());
  out.group_stride = members.size() > 1 ? members[1] - members[0] : 1;
  for (size_t i = 0; i < members.size(); ++i)
    RZ_CHECK(members[i] == members[0] + static_cast<int>(i) * out.group_stride, "a group of ranks that are not evenly spaced");
  return out;
}

class ScriptWriter {
 public:
  explicit ScriptWriter(StepScript& script, const Numbers& index) : script_(script), index_(index) {}

  void write(const std::vector<StepPiece>& pieces) {
    for (const StepPiece& piece : pieces) {
      if (!piece.mark.empty()) end_interval(piece.mark, piece.opens_unit);
      activity_ = piece.activity;
      backward_seen_ |= activity_ == Activity::backward;
      updated_seen_ |= piece.kind == StepPiece::Kind::update;
      switch (piece.kind) {
        case StepPiece::Kind::mark:
          break;
        case StepPiece::Kind::update:
          flush_update();
          updated_ = piece.elements;
          break;
        case StepPiece::Kind::issue:
          flush_update();  // a bucket is published when it is updated, and waited for before
          script_.items.push_back({ScriptItem::Kind::issue, index_(piece.operation), activity_});
          break;
        case StepPiece::Kind::wait:
          script_.items.push_back({ScriptItem::Kind::wait, index_(piece.operation), activity_});
          break;
      }
      // What is a mark itself is not within the interval that follows.
      if (!piece.mark.empty()) interval_begin_ = script_.items.size();
    }
    end_interval(kStepEnd, false);
  }

 private:
  // Where in an interval its collectives stand: those of a unit's begin at its end, all others at its begin.
  void end_interval(const std::string& mark, bool opens_unit) {
    flush_update();
    StepScript::Interval interval{mark};
    if (activity_ != Activity::other && activity_ != Activity::optimizer)
      interval.scale = StepScript::Scale::samples;
    else if (activity_ == Activity::other && backward_seen_ && !updated_seen_)
      interval.scale = StepScript::Scale::shard;
    const ScriptItem compute{ScriptItem::Kind::compute, static_cast<int64_t>(script_.intervals.size()), activity_};
    if (opens_unit)
      script_.items.insert(script_.items.begin() + static_cast<std::ptrdiff_t>(interval_begin_), compute);
    else
      script_.items.push_back(compute);
    script_.intervals.push_back(std::move(interval));
    interval_begin_ = script_.items.size();
  }

  void flush_update() {
    if (updated_ > 0) script_.items.push_back({ScriptItem::Kind::update, updated_, Activity::optimizer});
    updated_ = 0;
  }

  StepScript& script_;
  const Numbers& index_;
  Activity activity_ = Activity::other;
  size_t interval_begin_ = 0;
  int64_t updated_ = 0;
  bool backward_seen_ = false;
  bool updated_seen_ = false;
};

}  // namespace

std::vector<StepPiece> pieces_of(const trace::Step& step, const std::vector<std::string>& names,
                                 const std::unordered_set<std::string>& buckets) {
  std::unordered_map<int64_t, const std::string*> of_step;  // collectives that are no bucket's
  for (const trace::Operation& o : step.operations)
    if (!buckets.contains(names[o.name])) of_step[o.number] = &names[o.name];
  const auto updates = [](const Event& e) { return e.kind == Event::Kind::activity && e.activity == Activity::optimizer; };
  const auto last_update = std::find_if(step.events.rbegin(), step.events.rend(), updates).base();  // the event after it
  std::vector<StepPiece> pieces;
  bool updating = false;
  for (auto e = step.events.begin(); e != step.events.end(); ++e) {
    StepPiece piece;
    piece.activity = e->activity;
    piece.begin_ns = e->begin_ns;
    piece.end_ns = e->end_ns;
    switch (e->kind) {
      case Event::Kind::activity:
        if (updates(*e)) {
          if (!updating) piece.mark = "optimizer";
          updating = true;
          piece.kind = StepPiece::Kind::update;
          piece.elements = e->value;
        } else if (updating) {
          // Buckets differ: their updates are one stretch, whatever their number.
          if (e < last_update) continue;
          updating = false;
          piece.mark = "updated";
        } else {
          piece.mark = fmt::format("{} {}", name(e->activity), names[e->name]);
          piece.opens_unit = e->name != trace::kNoName;
        }
        break;
      case Event::Kind::bucket_ready:
        continue;
      case Event::Kind::ready:
        piece.mark = "ready " + names[e->name];
        break;
      case Event::Kind::issue:
      case Event::Kind::wait: {
        const bool waits = e->kind == Event::Kind::wait;
        piece.kind = waits ? StepPiece::Kind::wait : StepPiece::Kind::issue;
        piece.operation = e->value;
        if (const auto found = of_step.find(e->value); found != of_step.end())
          piece.mark = fmt::format("{} {}", waits ? "wait" : "issue", *found->second);
        break;
      }
    }
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

StepScript script_of(const trace::Step& before, const trace::Step& step, const std::vector<std::string>& names,
                     const std::unordered_map<uint32_t, std::vector<int>>& groups, std::unordered_set<std::string> buckets) {
  StepScript script;
  script.buckets = std::move(buckets);
  std::vector<trace::Operation> operations = step.operations;
  std::ranges::sort(operations, {}, &trace::Operation::number);
  for (const trace::Operation& o : operations) script.operations.push_back(operation_of(o, names, groups.at(o.group)));
  const Numbers index(before, step);
  ScriptWriter(script, index).write(pieces_of(step, names, script.buckets));
  return script;
}

StepScript dry_script(const ringzero::Job& given, int ranks) {
  RZ_CONFIG_CHECK(ranks >= 1, "ranks must be 1 or more, not {}", ranks);
  std::vector<std::string> notes;
  ringzero::Job job = given;
  if (const int64_t least = least_batch(job, ranks); job.training().batch() < least) {
    notes.push_back(
        fmt::format("training.batch is {}: simulated with {}, one sequence for each rank and micro-batch", job.training().batch(), least));
    job.mutable_training()->set_batch(least);
  }
  job.mutable_training()->set_steps(std::max(job.training().steps(), kDrySteps));
  job.mutable_training()->set_trace_steps(kDrySteps);
  job.mutable_training()->set_check_replicas(false);

  const RankContextScope scope(RankContext::make_dry(0));
  comm::Communicator comm = comm::make_dry_communicator(0, ranks);
  auto task = make_dry_task(job, notes);
  const int64_t items_per_sample = task->items_per_sample();
  Session session(job, std::move(task), comm);
  for (int64_t step = 0; step < kDrySteps; ++step) session.train_step(step);
  trace::Recorder& recorder = *session.recorder();
  recorder.collect();
  std::unordered_set<std::string> buckets;
  for (const auto& unit : session.sharded().units()) buckets.insert(unit->name());
  const auto& steps = recorder.steps();
  StepScript script = script_of(steps[steps.size() - 2], steps.back(), recorder.names(), recorder.groups(), std::move(buckets));
  script.ranks = ranks;
  script.batch = job.training().batch();
  script.items_per_sample = items_per_sample;
  script.notes = std::move(notes);
  script.smallest_tensor_bytes = std::numeric_limits<int64_t>::max();
  for (const auto& unit : session.sharded().units()) {
    for (const auto& entry : unit->layout().entries()) {
      const int64_t bytes = entry.parameter->numel() * static_cast<int64_t>(size_bytes(entry.parameter->value.dtype()));
      script.smallest_tensor_bytes = std::min(script.smallest_tensor_bytes, bytes);
      script.parameter_bytes += bytes;
    }
  }
  return script;
}

}  // namespace rz::tools
