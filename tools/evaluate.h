// How good a diffusion run's images are: Frechet distance, precision, recall and class accuracy by a classifier of the project's own, beside
// what real images and noisy ones get; and bits per dimension.
#pragma once

#include <string>

#include "tools/image_sample.h"

namespace rz::tools {

struct EvaluateOptions {
  std::string run;
  std::string classifier;  // run directory of a classifier without noise levels
  ImageSampleOptions sampling{.count = 2000};
  int64_t reference = 10000;  // training images that the Frechet distance compares with
  int64_t likelihood = 0;     // validation images whose bits per dimension are measured
  bool json = false;
};

// Writes evaluation.json into the run directory and prints it. COLLECTIVE.
void evaluate_run(const EvaluateOptions& options, comm::Communicator& comm);

}  // namespace rz::tools
