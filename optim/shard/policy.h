// A ZeRO stage is a row of a table (decision D7): what is sharded, and nothing else. The rest of the code reads the row.
//
// | stage | optimizer | gradients | parameters | full gradient buffer | reduction      | update    | after the update    |
// |   0   |     -     |     -     |     -      | persistent           | all-reduce     | all       | -                   |
// |   1   |     x     |     -     |     -      | persistent           | reduce-scatter | own shard | all-gather weights  |
// |   2   |     x     |     x     |     -      | transient            | reduce-scatter | own shard | all-gather weights  |
// |   3   |     x     |     x     |     x      | transient            | reduce-scatter | own shard | gather on use       |
// Two more axes leave the table as it is. Groups (shard_groups.h): "shard" and "gather" are within a group, and what was
// reduce-scattered is all-reduced across groups. Exact sums (exact_gradients.h): what is kept full or reduced is an integer sum.
//
// Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054).
#pragma once

#include <array>
#include <cstdint>

#include "runtime/core/error.h"

namespace rz::optim {

struct ShardingPolicy {
  bool optimizer = false;   // optimizer state (and the update) only for the own shard
  bool gradients = false;   // full gradients live only until they are reduced
  bool parameters = false;  // full weights live only while they are used
  bool operator==(const ShardingPolicy&) const = default;
};

inline constexpr std::array<ShardingPolicy, 4> kStages = {{
    {false, false, false},
    {true, false, false},
    {true, true, false},
    {true, true, true},
}};

inline ShardingPolicy policy_of_stage(int64_t stage) {
  RZ_CONFIG_CHECK(stage >= 0 && stage < static_cast<int64_t>(kStages.size()), "stage must be 0, 1, 2 or 3, not {}", stage);
  return kStages[static_cast<size_t>(stage)];
}

}  // namespace rz::optim
