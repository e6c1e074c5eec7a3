#include "tools/sample_command.h"

#include <memory>

#include "comm/launch.h"
#include "tools/sample.h"

namespace rz::tools {

void add_image_flags(CLI::App& command, ImageSampleOptions& options) {
  command.add_option("--preset", options.preset, "process to sample with; default: the one that was trained")->group("Images");
  command.add_option("--class", options.label, "class of all images; default: one after the other")->group("Images");
  command.add_option("--guidance", options.guidance, "weight of classifier-free guidance: 0 unconditional, 1 conditional")
      ->capture_default_str()
      ->group("Images");
  command.add_option("--guide", options.guide, "run of a classifier with noise levels that guides (examples/fashion_guide.textproto)")->group("Images");
  command.add_option("--classifier-guidance", options.classifier_guidance, "scale of the guide's gradient; default: 1")->group("Images");
  command.add_option("--batch", options.batch, "images that a rank draws at once; changes no bit")->capture_default_str()->group("Images");
  command.add_option("--clamp", options.clamp, "true or false: clamp the denoised image in every step; default: on discrete paths")->group("Images");
  auto* group = command.add_option_group("Sampler");
  add_sampler_flags(*group, options.sampler, "--times");
}

void add_sample_command(CLI::App& app, int& exit_code) {
  struct Flags {
    SampleOptions options;
    std::string prompt;
    int64_t tokens = 400;
    double temperature = 0.8;
    int64_t top_k = 0;
    double top_p = 1;
    int ranks = 1;
  };
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand("sample", "generate text or images from a trained run; under mpirun every process is a rank");
  command->add_option("run", flags->options.run, "run directory")->required();
  command->add_option("--prompt", flags->prompt, "text to continue; default: a new line");
  command->add_option("--tokens", flags->tokens, "tokens to generate")->capture_default_str();
  command->add_option("--temperature", flags->temperature, "0: always the likeliest")->capture_default_str();
  command->add_option("--top-k", flags->top_k, "choose among the k likeliest; 0: all")->capture_default_str();
  command->add_option("--top-p", flags->top_p, "choose among the likeliest that together have this probability")->capture_default_str();
  auto& images = flags->options.images;
  command->add_option("--count", images.options.count, "images to draw")->capture_default_str()->group("Images");
  command->add_option("--grid", images.grid, "PNG file with all images, ten in a row")->group("Images");
  command->add_option("--strip", images.strip, "PNG file that shows ten images being denoised, a row each")->group("Images");
  command->add_option("--pairs", images.pairs, "new folder for pairs of noise and image as .npy, for reflow (diffusion.pairs of a job)")->group("Images");
  command->add_option("--interpolate", images.interpolate, "A,B: draw what lies between samples A and B")->delimiter(',')->expected(2)->group("Images");
  add_image_flags(*command, images.options);
  command->add_option("--ranks", flags->ranks, "ranks as threads of this process, without mpirun")->capture_default_str();
  command->add_option("--seed", flags->options.seed, "of the choices")->capture_default_str();
  command->add_option("--threads", flags->options.threads, "compute threads; 0: all cores")->capture_default_str();
  command->add_flag("--json", flags->options.json, "print a JSON object");
  command->callback([flags, &exit_code] {
    auto& sample = flags->options.sample;
    sample.set_prompt(flags->prompt);
    sample.set_tokens(flags->tokens);
    sample.set_temperature(flags->temperature);
    sample.set_top_k(flags->top_k);
    sample.set_top_p(flags->top_p);
    auto& images = flags->options.images;
    images.run = flags->options.run;
    images.json = flags->options.json;
    images.options.seed = flags->options.seed;
    comm::LaunchOptions launch;
    if (!comm::under_mpirun()) launch.ranks = flags->ranks;
    exit_code = comm::run_ranks(launch, [&](comm::Communicator& comm) { sample_run(flags->options, comm); });
  });
}

}  // namespace rz::tools
