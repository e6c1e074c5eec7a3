// Images from a trained diffusion model: `ringzero sample DIR`, and the samples that `evaluate` measures.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "models/diffusion/denoiser.h"
#include "tools/image_model.h"
#include "tools/sampler_flags.h"

namespace rz::tools {

// Fills `module` with the weights of a run's newest whole checkpoint, the average ones where the run keeps them; says which step, and on
// rank 0's stderr what a user should know. COLLECTIVE.
int64_t load_weights(nn::Module& module, const ringzero::Job& job, const std::string& run, comm::Communicator& comm);

struct TrainedDiffusion {
  ringzero::Job job;
  ImagesInfo info;
  int64_t step = 0;
  std::unique_ptr<models::diffusion::ImageNetwork> network;
  models::diffusion::Process process;
};
// ConfigError when `run` trained none. COLLECTIVE.
TrainedDiffusion load_diffusion(const std::string& run, comm::Communicator& comm);

struct ImageSampleOptions {
  std::string preset;  // empty: the one it was trained with
  SamplerFlags sampler;
  double guidance = 1;           // weight w of classifier-free guidance: 0 unconditional, 1 conditional
  std::optional<int64_t> label;  // unset: sample i is of class i mod the number of classes
  int64_t count = 100;
  int64_t batch = 50;  // samples at once on a rank; changes no bit
  uint64_t seed = 0;
  std::optional<bool> clamp;  // x0 to [-1, 1] in every step; unset: where the path is discrete, as published
};

// How a trained network is sampled with these options. ConfigError for what does not fit.
struct SamplingPlan {
  models::diffusion::Process process;  // path and defaults of the preset that is sampled with
  models::diffusion::DenoiserPtr denoiser;
  models::diffusion::SamplerConfig config;
  models::diffusion::Grid grid;
  int64_t evaluations = 0;  // of the network per sample; guidance other than 0 and 1 evaluates twice
};
SamplingPlan plan_sampling(TrainedDiffusion& model, const ImageSampleOptions& options);

// Classes of samples [0, count), in their order.
std::vector<int32_t> sample_labels(const TrainedDiffusion& model, const ImageSampleOptions& options);

// The levels of all samples in their order, on every rank: the same for any number of ranks and any batch. COLLECTIVE.
std::vector<uint8_t> sample_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, comm::Communicator& comm);

// rows(begin, end) of this rank's part of `count` things, as bytes; those of all ranks in order, on every rank. COLLECTIVE.
std::string gather_parts(comm::Communicator& comm, int64_t count, const std::function<std::string(int64_t begin, int64_t end)>& part);

struct ImageSampleCommand {
  std::string run;
  ImageSampleOptions options;
  std::string grid;   // PNG of all samples, ten in a row; empty: none
  std::string strip;  // PNG of the first ten samples at ten moments of sampling; empty: none
  bool json = false;
};
// COLLECTIVE.
void sample_images_command(const ImageSampleCommand& command, comm::Communicator& comm);

}  // namespace rz::tools
