// Generating tokens from a Transformer, one at a time, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "models/transformer/transformer.h"

namespace rz::models {

struct SamplingConfig {
  double temperature = 0.8;  // 0: always the likeliest
  int64_t top_k = 0;         // choose among the k likeliest; 0: all
  double top_p = 1;          // choose among the likeliest that together have this probability (Holtzman et al. 2020)
  uint64_t seed = 0;
};

// Chooses from `logits` (V numbers) for generation position `position`; a pure function of its arguments.
int32_t choose_token(const std::vector<float>& logits, const SamplingConfig& config, uint64_t position);

// Generates `count` tokens after `prompt` (at least one token) and calls on_token for each. When the context is full it starts
// again from the last half of what was seen. The same tokens on every rank; COLLECTIVE when the model is distributed.
std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt, int64_t count, const SamplingConfig& config,
                              const std::function<void(int32_t)>& on_token = {});

}  // namespace rz::models
