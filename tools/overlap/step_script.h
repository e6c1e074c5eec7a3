// What a rank's main thread does in a step, in order and without times: compute, collectives issued, collectives waited for.
//
// A *mark* is an event that comes in the same order whatever the stage, the buckets, the prefetch, the link and the number of ranks:
// a unit's forward begins or ends, backward enters a unit, a gradient is complete, norm and loss are summed, the optimizer begins or
// ends. Durations measured between marks in one configuration therefore are those between the same marks in another one; where the
// collectives stand between them, a dry run of that configuration tells (Session: the very code that trains).
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "comm/types.h"
#include "proto/job.pb.h"
#include "runtime/core/trace.h"

namespace rz::tools {

// An event of a step, with what it is for a script.
struct StepPiece {
  enum class Kind : uint8_t { mark, issue, wait, update };
  Kind kind = Kind::mark;
  std::string mark;                                   // its name; empty where it is none. An issue or a wait may be a mark too
  bool opens_unit = false;                            // a mark: what stands before it belongs to it, not to the mark before
  trace::Activity activity = trace::Activity::other;  // from here on
  int64_t operation = -1;                             // issue, wait: its number
  int64_t elements = 0;                               // update
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
};

// `buckets`: names of buckets; a collective of another name belongs to the step itself and is a mark.
std::vector<StepPiece> pieces_of(const trace::Step& step, const std::vector<std::string>& names,
                                 const std::unordered_set<std::string>& buckets);

// A collective of a step. Ranks that differ by less than `group_stride` are in different groups; a group has `group_size` ranks.
struct ScriptOperation {
  std::string name;
  comm::CollectiveKind kind = comm::CollectiveKind::all_reduce;
  comm::Order order = comm::Order::ring;
  uint64_t bytes = 0;  // of the full buffer
  int group_size = 1;
  int group_stride = 1;

  // The first member of the group in which `rank` is.
  int first_member(int rank) const { return rank / (group_size * group_stride) * (group_size * group_stride) + rank % group_stride; }
  bool operator==(const ScriptOperation&) const = default;
};

struct ScriptItem {
  enum class Kind : uint8_t { compute, update, issue, wait };
  Kind kind = Kind::compute;
  // compute: the interval that ends at mark `value`, counted from 0; update: elements; issue, wait: index of the operation, for a
  // wait minus the number of operations where it is the step before's.
  int64_t value = 0;
  trace::Activity activity = trace::Activity::other;
  bool operator==(const ScriptItem&) const = default;
};

struct StepScript {
  // What an interval's duration is proportional to when the number of ranks changes.
  enum class Scale : uint8_t { fixed, samples, shard };
  struct Interval {
    std::string mark;  // that ends it
    Scale scale = Scale::fixed;
    bool operator==(const Interval&) const = default;
  };

  std::vector<Interval> intervals;  // the last ends with the step
  std::vector<ScriptItem> items;
  std::vector<ScriptOperation> operations;
  std::unordered_set<std::string> buckets;
  int ranks = 1;
  int64_t batch = 1;                  // samples of all ranks, after raising it to one for each
  int64_t items_per_sample = 1;       // tokens
  int64_t smallest_tensor_bytes = 0;  // of the model, and all of it
  int64_t parameter_bytes = 0;
  std::vector<std::string> notes;
};

inline constexpr const char* kStepEnd = "end of step";

// What a rank did in `step`, which came after `before`: intervals, items and operations. Its collectives must all be there.
StepScript script_of(const trace::Step& before, const trace::Step& step, const std::vector<std::string>& names,
                     const std::unordered_map<uint32_t, std::vector<int>>& groups, std::unordered_set<std::string> buckets);

// The script of the job's steps on rank 0 of `ranks`, from a dry run; other ranks do the same. ConfigError for what a run would refuse.
StepScript dry_script(const ringzero::Job& job, int ranks);

}  // namespace rz::tools
