// Command-line flags that change a preset's sampler: shared by `sampler`, which studies it, and `sample`, which draws images with it.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "models/diffusion/process.h"

namespace rz::tools {

struct SamplerFlags {
  std::optional<int64_t> steps;
  std::string times, method, coordinates, variance;
  std::optional<double> eta;
  std::optional<int> order;
  std::optional<double> churn, churn_low, churn_high, churn_noise, snr, langevin_step;
  std::optional<int64_t> corrector_steps, langevin_steps;
  bool denoise = false;
};

// `times_flag`: the name of the flag that chooses the grid of times.
void add_sampler_flags(CLI::App& command, SamplerFlags& flags, const std::string& times_flag);

// The preset's sampler with what the flags change. `learned_variance`: whether the network has one; without, the preset's own choice of it
// becomes fixed_small. ConfigError for flags that contradict each other.
models::diffusion::SamplerConfig sampler_config(const SamplerFlags& flags, const models::diffusion::Process& process, bool learned_variance);
models::diffusion::GridSpec grid_spec(const SamplerFlags& flags, const models::diffusion::Process& process);

}  // namespace rz::tools
