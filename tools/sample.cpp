#include "tools/sample.h"

#include <charconv>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tools/compute.h"
#include "tools/job_file.h"

namespace rz::tools {

namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  RZ_CONFIG_CHECK(in.good(), "cannot read {}; is it a run directory of a language model?", path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<int32_t> encode_prompt(const Vocabulary& vocabulary, const std::string& prompt) {
  if (vocabulary.symbols) return vocabulary.symbols->encode(prompt.empty() ? "\n" : prompt);
  std::vector<int32_t> tokens;
  std::istringstream words(prompt);
  for (std::string word; words >> word;) {
    int32_t token = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
    RZ_CONFIG_CHECK(error == std::errc() && end == word.data() + word.size() && token >= 0 && token < vocabulary.size,
                    "this run's vocabulary has no text: the prompt must be token numbers below {}, not '{}'", vocabulary.size, word);
    tokens.push_back(token);
  }
  if (tokens.empty()) tokens.push_back(0);
  return tokens;
}

}  // namespace

void check_prompt(const Vocabulary& vocabulary, const std::string& prompt) { encode_prompt(vocabulary, prompt); }

std::string sample_text(models::Transformer& model, const Vocabulary& vocabulary, const ringzero::Sample& sample, uint64_t seed) {
  const auto prompt = encode_prompt(vocabulary, sample.prompt());
  const auto tokens = models::generate(model, prompt, sample.tokens(), {sample.temperature(), sample.top_k(), sample.top_p(), seed});
  if (vocabulary.symbols) return sample.prompt() + vocabulary.symbols->decode(tokens);
  return fmt::format("{}", fmt::join(tokens, " "));
}

void sample_run(const SampleOptions& options, comm::Communicator& comm) {
  set_threads(options.threads, comm);
  const auto job = load_job(options.run + "/job.textproto");
  if (is_diffusion(job)) return sample_images_command(options.images, comm);
  set_products(job);
  RZ_CONFIG_CHECK(job.has_transformer(), "{} trained no model that generates", options.run);
  const std::string vocabulary_path = options.run + "/vocabulary.json";
  const Vocabulary vocabulary = parse_vocabulary(read_file(vocabulary_path), vocabulary_path);
  models::Transformer model(transformer_config(job, vocabulary.size));
  const int64_t step = load_weights(model, job, options.run, comm);
  const std::string text = sample_text(model, vocabulary, options.sample, options.seed);
  if (comm.rank() != 0) return;
  if (!options.json) {
    fmt::print("{}\n", text);
    return;
  }
  nlohmann::ordered_json json;
  json["run"] = options.run;
  json["step"] = step;
  json["prompt"] = options.sample.prompt();
  json["text"] = text;
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace rz::tools
