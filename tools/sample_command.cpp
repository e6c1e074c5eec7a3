#include "tools/sample_command.h"

#include <memory>

#include "comm/launch.h"
#include "tools/sample.h"

namespace rz::tools {

void add_sample_command(CLI::App& app, int& exit_code) {
  struct Flags {
    SampleOptions options;
    std::string prompt;
    int64_t tokens = 400;
    double temperature = 0.8;
    int64_t top_k = 0;
    double top_p = 1;
  };
  auto flags = std::make_shared<Flags>();
  auto* command = app.add_subcommand("sample", "generate text from a trained run");
  command->add_option("run", flags->options.run, "run directory")->required();
  command->add_option("--prompt", flags->prompt, "text to continue; default: a new line");
  command->add_option("--tokens", flags->tokens, "tokens to generate")->capture_default_str();
  command->add_option("--temperature", flags->temperature, "0: always the likeliest")->capture_default_str();
  command->add_option("--top-k", flags->top_k, "choose among the k likeliest; 0: all")->capture_default_str();
  command->add_option("--top-p", flags->top_p, "choose among the likeliest that together have this probability")->capture_default_str();
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
    exit_code = comm::run_ranks({}, [&](comm::Communicator& comm) { sample_run(flags->options, comm); });
  });
}

}  // namespace rz::tools
