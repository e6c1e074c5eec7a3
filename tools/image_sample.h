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

// What a checkpoint calls the weights that a run is sampled with, and what else it holds.
struct WeightNames {
  std::string prefix;                // before the parameter's name
  std::vector<std::string> skipped;  // prefixes
};
WeightNames weight_names(const ringzero::Job& job);

// Fills `module` with the weights of a run's newest whole checkpoint, the average ones where the run keeps them; says which step, and on
// rank 0's stderr what a user should know. COLLECTIVE.
int64_t load_weights(nn::Module& module, const ringzero::Job& job, const std::string& run, comm::Communicator& comm);

// A classifier of noised images that guides: with the process whose noise levels it was trained at.
struct Guide {
  models::diffusion::Process process;
  std::unique_ptr<models::diffusion::Classifier> model;
};

struct TrainedDiffusion {
  ringzero::Job job;
  ImagesInfo info;
  int64_t step = 0;
  std::shared_ptr<models::diffusion::ImageNetwork> network;
  models::diffusion::Process process;
  std::shared_ptr<const Guide> guide;  // null: none

  // Of the classes that samples can be asked for: 0 where neither the network nor a guide knows any.
  int64_t classes() const { return network->classes() > 0 ? network->classes() : guide ? info.classes() : 0; }
};
// With `guide`, the run of a classifier with noise levels, its samples can be guided by it. ConfigError when `run` trained no diffusion
// model, or `guide` no such classifier of the same images. COLLECTIVE.
TrainedDiffusion load_diffusion(const std::string& run, comm::Communicator& comm, const std::string& guide = "");

// What a run keeps of its images. ConfigError naming the file.
ImagesInfo read_images_info(const std::string& run);
// The same; ConfigError unless they are of the size and in the classes of `images`.
ImagesInfo check_same_images(const std::string& run, const ImagesInfo& images);

struct ImageSampleOptions {
  std::string preset{};  // empty: the one it was trained with
  SamplerFlags sampler{};
  double guidance = 1;           // weight w of classifier-free guidance: 0 unconditional, 1 conditional
  std::string guide{};             // run of a classifier with noise levels; empty: none
  std::optional<double> classifier_guidance{};  // its scale; unset: 1
  std::optional<int64_t> label{};  // unset: sample i is of class i mod the number of classes
  int64_t count = 100;
  int64_t batch = 50;  // samples at once on a rank; changes no bit
  uint64_t seed = 0;
  std::optional<bool> clamp{};  // x0 to [-1, 1] in every step; unset: where the path is discrete, as published
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

// What the denoiser is told of samples [begin, end), and where they start.
models::diffusion::Conditioning conditioning_of(const TrainedDiffusion& model, const std::vector<int32_t>& labels, int64_t begin, int64_t end);
Tensor start_of_samples(const TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, int64_t begin, int64_t end);

class NotNumbers : public Error {
 public:
  using Error::Error;
};

// The levels of all samples in their order, on every rank: the same for any number of ranks and any batch. Every rank makes as many
// forwards. NotNumbers, on all ranks alike, where some rank drew what is not a number. COLLECTIVE.
std::vector<uint8_t> sample_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, comm::Communicator& comm);

// `options.count` samples whose noises lie evenly on the great circle from that of sample `from` to that of `to`, both ends included, all of
// the class asked for, or else of `from`'s. ConfigError for a sampler that is not deterministic. COLLECTIVE.
std::vector<uint8_t> interpolate_images(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, int64_t from, int64_t to,
                                        comm::Communicator& comm);

// Draws `options.count` pairs of noise and image into a new folder (models/data/image_pairs.h), the same bytes for any number of ranks.
// Returns a digest of noises and images on rank 0. ConfigError where no flow is sampled deterministically from t = 1. COLLECTIVE.
uint64_t write_pairs(TrainedDiffusion& model, const SamplingPlan& plan, const ImageSampleOptions& options, const std::string& folder, comm::Communicator& comm);

// part(begin, end) of this rank's part of `count` things, as bytes; those of all ranks in order, on every rank. COLLECTIVE.
std::string gather_parts(comm::Communicator& comm, int64_t count, const std::function<std::string(int64_t begin, int64_t end)>& part);

struct ImageSampleCommand {
  std::string run;
  ImageSampleOptions options;
  std::string grid;   // PNG of all samples, ten in a row; empty: none
  std::string strip;  // PNG of the first ten samples at ten moments of sampling; empty: none
  std::string pairs;  // folder for pairs of noise and image, instead of pictures (models/data/image_pairs.h); empty: none
  std::vector<int64_t> interpolate;  // A, B: the samples are those on the way from sample A to sample B; empty: not
  bool json = false;
};
// COLLECTIVE.
void sample_images_command(const ImageSampleCommand& command, comm::Communicator& comm);

}  // namespace rz::tools
