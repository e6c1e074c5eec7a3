// Where the time of a step went on each rank: compute + exposed communication + other = step time, to the nanosecond; and for every
// exposed millisecond its cause.
//
//   compute        forward, backward and optimizer, without the waits inside
//   exposed        the main thread waits for a collective
//   other          the rest: data, bookkeeping
//   communication  the collectives' transfers, each from the moment when the last rank took it up until it was done here
//   hidden         the part of the transfers during which this rank's main thread did not wait
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/overlap/run_trace.h"

namespace rz::tools {

// Why a rank waited. A wait on a collective falls into parts, each with one cause:
enum class Cause : uint8_t {
  gradient_late,     // a reduction was issued so late that it could not have ended in time; names the bucket
  prefetch_late,     // the same of a gather or a publication
  link_bound,        // it had to stand in line behind transfers that were needed before it: the link is too slow for so much
  queued_behind,     // the link was busy with a transfer that is needed later than this one
  slow_link,         // of what a transfer took, the part by which the slowest link is slower than the others; names the link
  straggler,         // other ranks had not come so far; names the last
  synchronization,   // norm and loss, which everybody must know at once
  progress_starved,  // queued, but the progress thread had not taken it up, or done, but the main thread did not wake
};
inline constexpr size_t kCauses = 8;
const char* name(Cause cause);

// What a collective is for, from the layer that issues it.
enum class Purpose : uint8_t { reduce, gather, publish, scalars };
const char* name(Purpose purpose);

// Part of a wait.
struct Exposure {
  Cause cause = Cause::link_bound;
  std::string who;  // the bucket, link or rank that is to blame
  int64_t begin_ns = 0;
  int64_t ns = 0;
};

// One collective of a step on one rank.
struct CollectiveAccount {
  std::string bucket;
  Purpose purpose = Purpose::reduce;
  trace::Operation operation;  // its times on the common clock
  bool issued_here = true;     // in this step; false: in the one before
  int64_t ready_ns = 0;        // the last rank took it up
  int64_t hidden_ns = 0;
  std::vector<Exposure> exposed;  // in order of time

  int64_t transfer_ns() const { return operation.done_ns - ready_ns; }
  int64_t exposed_ns() const;
};

struct StepAccount {
  int rank = 0;
  int64_t step = 0;
  int64_t step_ns = 0;
  std::array<int64_t, trace::kActivities> activity_ns{};  // without waits
  int64_t exposed_ns = 0;
  int64_t communication_ns = 0;
  int64_t hidden_ns = 0;
  std::array<int64_t, kCauses> exposed_by_cause{};
  std::vector<CollectiveAccount> collectives;  // issued or waited for in this step
  uint64_t sent_bytes = 0;                     // of those issued in this step

  int64_t compute_ns() const;
  int64_t other_ns() const { return step_ns - compute_ns() - exposed_ns; }
  double hidden_fraction() const {
    return communication_ns > 0 ? static_cast<double>(hidden_ns) / static_cast<double>(communication_ns) : 1.0;
  }
};

// Ranks that are busy (compute + other) longer than the usual rank. What they cost need not show as exposed time with the cause `straggler`: where
// the link is the limit, a rank that is late makes the transfers begin later, and what is waited for is the link.
struct Stragglers {
  struct Slow {
    int rank = 0;
    double busy_ms = 0;  // of the median step
  };
  std::vector<Slow> ranks;  // the slowest first
  int usual_rank = 0;       // the lower median
  double usual_ms = 0;
  std::optional<double> saved_ms;  // of a step, had they taken the times of the usual rank; simulated (stragglers.h)
  std::string not_simulated;       // why saved_ms is missing
};

struct RunAccount {
  int size = 1;
  std::vector<int64_t> steps;                   // accounted: the first of the run and the first kept are not
  std::vector<std::vector<StepAccount>> ranks;  // [rank][index of steps]
  std::string slow_link;                        // "1 -> 2 (98 Mbit/s, the others 1004 Mbit/s)"; empty when none stands out
  Stragglers stragglers;

  // The rank that the others waited for most: with the longest compute + other.
  int critical_rank() const;
};

// ConfigError when fewer than one step can be accounted.
RunAccount account_run(const RunTrace& run);

}  // namespace rz::tools
