// From the messages of a job to images, networks of images and diffusion processes; and what a run keeps of its data so that it can be
// sampled without it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/data/image_batch.h"
#include "models/diffusion/classifier.h"
#include "models/diffusion/network.h"
#include "models/diffusion/process.h"
#include "proto/job.pb.h"

namespace rz::tools {

inline constexpr const char* kImagesFile = "images.json";

// What generation needs to know of the images that a network was trained on.
struct ImagesInfo {
  models::ImageSize size;  // with padding
  int64_t padding = 0;
  std::vector<std::string> class_names;
  double sigma_data = 0.5;

  int64_t classes() const { return static_cast<int64_t>(class_names.size()); }
  std::string json() const;
};
// ConfigError naming `path` for anything that json() did not write.
ImagesInfo parse_images_info(const std::string& json, const std::string& path);

bool is_diffusion(const ringzero::Job& job);

// The job's images; in a dry run as many, but without contents.
models::ImageDataset load_images(const ringzero::Job& job);
models::ImageOptions image_options(const ringzero::Job& job);
ImagesInfo images_info(const ringzero::Job& job, const models::ImageDataset& dataset);

models::diffusion::PresetOptions preset_options(const ringzero::Diffusion& message, double sigma_data);
models::diffusion::Process make_process(const ringzero::Job& job, const ImagesInfo& info);
// The job's UNet or DiT. ConfigError where it does not fit the images.
std::unique_ptr<models::diffusion::ImageNetwork> make_network(const ringzero::Job& job, const ImagesInfo& info);
models::diffusion::ClassifierConfig classifier_config(const ringzero::Job& job, const ImagesInfo& info);

// The network as a process calls it: images of any type go through weights of their own type. `network` must outlive the result.
models::diffusion::Network bind_network(models::diffusion::ImageNetwork& network, const models::SampleKey& key);

}  // namespace rz::tools
