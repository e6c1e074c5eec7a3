#include "tools/evaluate_command.h"

#include <memory>

#include "comm/launch.h"
#include "tools/compute.h"
#include "tools/evaluate.h"
#include "tools/sample_command.h"

namespace rz::tools {

void add_evaluate_command(CLI::App& app, int& exit_code) {
  struct Flags {
    EvaluateOptions options;
    int threads = 0;
    int ranks = 1;
  };
  auto flags = std::make_shared<Flags>();
  EvaluateOptions& o = flags->options;
  auto* c = app.add_subcommand("evaluate", "measure a diffusion run's images: Frechet distance, precision, recall, class accuracy, straightness of flows, bits per dimension");
  c->add_option("run", o.run, "run directory of a diffusion model")->required();
  c->add_option("--classifier", o.classifier, "run directory of a classifier of the same images (examples/fashion_classifier.textproto)")->required();
  c->add_option("--count", o.sampling.count, "samples to measure; figures of different numbers cannot be compared")->capture_default_str();
  c->add_option("--reference", o.reference, "training images that the Frechet distance compares with")->capture_default_str();
  c->add_option("--likelihood", o.likelihood, "validation images whose bits per dimension are measured")->capture_default_str();
  add_image_flags(*c, o.sampling);
  c->add_option("--seed", o.sampling.seed, "of the samples")->capture_default_str();
  c->add_option("--threads", flags->threads, "compute threads; 0: all cores")->capture_default_str();
  c->add_option("--ranks", flags->ranks, "ranks as threads of this process, without mpirun")->capture_default_str();
  c->add_flag("--json", o.json, "print a JSON object");
  c->callback([flags, &exit_code] {
    comm::LaunchOptions launch;
    if (!comm::under_mpirun()) launch.ranks = flags->ranks;
    launch.deadline_s = 600;  // rank 0 measures alone at the end
    exit_code = comm::run_ranks(launch, [&](comm::Communicator& comm) {
      set_threads(flags->threads, comm);
      evaluate_run(flags->options, comm);
    });
  });
}

}  // namespace rz::tools
