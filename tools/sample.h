// Samples of a trained run: text from a language model, images from a diffusion model (image_sample.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "models/transformer/generate.h"
#include "proto/job.pb.h"
#include "tools/image_sample.h"
#include "tools/language_task.h"

namespace rz::tools {

// The prompt and what the model makes of it; tokens as numbers where the vocabulary is not text. An empty prompt starts at a line's
// beginning. ConfigError for a prompt that the vocabulary cannot spell. COLLECTIVE when the model is distributed.
// ConfigError where the model's vocabulary lacks some of the prompt.
void check_prompt(const Vocabulary& vocabulary, const std::string& prompt);
std::string sample_text(models::Transformer& model, const Vocabulary& vocabulary, const ringzero::Sample& sample, uint64_t seed);

struct SampleOptions {
  std::string run;  // run directory
  bool prompt_given = false;
  ringzero::Sample sample;
  uint64_t seed = 0;
  int threads = 0;
  bool json = false;
  ImageSampleCommand images;  // for a diffusion model
};

// Loads the newest whole checkpoint of a run (its weight average where it has one) and prints a sample, or draws images. COLLECTIVE.
void sample_run(const SampleOptions& options, comm::Communicator& comm);

}  // namespace rz::tools
