// What `ringzero overlap` says about a run: a table, overlap.json, and advice.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/job.pb.h"
#include "tools/overlap/account.h"

namespace rz::tools {

// The mean over the accounted steps of one rank. Means add up: compute + exposed + other = step.
struct RankMeans {
  int rank = 0;
  double step_ms = 0;
  double median_step_ms = 0;
  double compute_ms = 0;
  std::array<double, trace::kActivities> activity_ms{};
  double communication_ms = 0;
  double exposed_ms = 0;
  double hidden_fraction = 1;
  double other_ms = 0;
  double sent_bytes = 0;
  std::array<double, kCauses> exposed_by_cause{};

  // What perfect overlap would give: all communication beside all compute.
  double ideal_ms() const;
};
RankMeans means_of(const RunAccount& account, int rank);

// The collectives of one bucket and purpose in a step, in the order of issue; means over the steps.
struct BucketMeans {
  std::string bucket;
  Purpose purpose = Purpose::reduce;
  double bytes = 0;
  double transfer_ms = 0;
  double hidden_ms = 0;
  double exposed_ms = 0;
  double bus_bytes_per_s = 0;  // sent by this rank over the time of the transfer
  std::map<std::pair<Cause, std::string>, double> causes{};
};
std::vector<BucketMeans> buckets_of(const RunAccount& account, int rank);

// Sentences, the most useful first.
std::vector<std::string> advice_on(const RunAccount& account, const ringzero::Job& job);

nlohmann::ordered_json overlap_json(const RunAccount& account, const ringzero::Job& job);
std::string overlap_text(const RunAccount& account, const ringzero::Job& job);

}  // namespace rz::tools
