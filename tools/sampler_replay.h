// Replays of the scheduler tests of Hugging Face's diffusers library with this project's samplers: the same inputs, "model" and grids, so
// that sums can be compared. The model is F(x, t) = x t / (t + 1); the sample counts 0 .. 767 over 768, as [4, 3, 8, 8].
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rz::tools {

std::vector<std::string> replay_cases();

// sum and mean of |x| after the loop of a case, or the variances that it lists. Names as in diffusers ("ddim_full_loop_with_noise") or
// short ("ddim_noise"); ConfigError listing the cases for anything else.
nlohmann::ordered_json replay_json(const std::string& name);

}  // namespace rz::tools
