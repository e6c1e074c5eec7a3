// Straightening flows: Liu, Gong, Liu, "Flow straight and fast", 2022. A flow model is trained again on its own pairs of noise and
// sample; what it then learns crosses itself less, so that few steps, in the end one, suffice.
//
//   pairs = reflow_pairs(model, ...);  Objective(process).loss(network, pairs.data, .., pairs.noise)             reflow
//   Objective(one_step_distillation(process)).loss(network, pairs.data, .., pairs.noise)                         distillation
#pragma once

#include <vector>

#include "models/diffusion/process.h"

namespace rz::models::diffusion {

struct ReflowPairs {
  Tensor noise;  // x at t = 1
  Tensor data;   // what the sampler makes of it
};

// ConfigError unless the path is pure standard normal noise at t = 1, where pairs begin.
void check_path_of_pairs(const Path& path);

// `grid` must begin at t = 1, and the path be pure noise there.
ReflowPairs reflow_pairs(const Denoiser& denoiser, const Process& process, const Grid& grid, const Shape& shape,
                         const Conditioning& conditioning, const SampleRows& rows);

// `process`, trained at t = 1 only: the network learns to reach the paired sample in one step.
Process one_step_distillation(Process process);

// Mean over dimensions and over the grid of |(x_1 - x_0) - u(x_t, t)|^2 along Euler's trajectory of each sample: 0 where it is a straight
// line at constant speed.
std::vector<double> straightness(const Denoiser& denoiser, const Path& path, const Grid& grid, const Tensor& noise,
                                 const Conditioning& conditioning);

}  // namespace rz::models::diffusion
