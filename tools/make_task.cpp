#include "tools/diffusion_task.h"
#include "tools/language_task.h"

namespace rz::tools {

namespace {

// In a validation forward: large enough to be fast, small enough for any machine.
constexpr int64_t kTokensAtOnce = 4096;
constexpr int64_t kImagesValidatedAtOnce = 64;

}  // namespace

std::unique_ptr<Task> make_image_task(const ringzero::Job& job) {
  auto dataset = load_images(job);
  if (job.has_classifier()) return std::make_unique<ClassifierTask>(job, std::move(dataset));
  return std::make_unique<DiffusionTask>(job, std::move(dataset));
}

std::unique_ptr<Task> make_task(const ringzero::Job& job) {
  if (job.has_transformer()) return std::make_unique<LanguageTask>(job, load_tokens(job));
  RZ_CONFIG_CHECK(job.model_case() != ringzero::Job::MODEL_NOT_SET, "the job names no model; give transformer, unet, dit or classifier");
  return make_image_task(job);
}

int64_t samples_at_once(const ringzero::Job& job) {
  return job.has_transformer() ? std::max<int64_t>(1, kTokensAtOnce / std::max<int64_t>(1, job.transformer().context()))
                               : kImagesValidatedAtOnce;
}

}  // namespace rz::tools
