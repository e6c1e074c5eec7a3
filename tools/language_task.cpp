#include "tools/language_task.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/data/load.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/core/trace.h"

namespace rz::tools {

models::TokenDataset load_tokens(const ringzero::Job& job) {
  if (job.has_tokens()) return models::load_token_files(job.tokens().train_path(), job.tokens().validation_path(), job.tokens().vocabulary());
  RZ_CONFIG_CHECK(job.has_text(), "the job names no data; give one of text, tokens");
  const auto& text = job.text();
  if (text.path().empty()) return models::load_king_james_bible(text.validation_fraction());
  return models::load_text_file(text.path(), text.validation_fraction());
}

models::TransformerConfig transformer_config(const ringzero::Job& job, int64_t vocabulary) {
  const ringzero::Transformer& m = job.transformer();
  models::TransformerConfig c;
  c.layers = m.layers();
  c.width = m.width();
  c.heads = m.heads();
  c.kv_heads = m.kv_heads();
  c.context = m.context();
  c.vocabulary = m.vocabulary() > 0 ? m.vocabulary() : vocabulary;
  c.mlp_width = m.mlp_width();
  c.positions = m.positions() == ringzero::Transformer::ROPE ? models::Positions::rope : models::Positions::learned;
  c.norm = m.norm() == ringzero::Transformer::RMS_NORM ? nn::NormKind::rms_norm : nn::NormKind::layer_norm;
  c.mlp = m.mlp() == ringzero::Transformer::SWIGLU ? models::MlpKind::swiglu : models::MlpKind::gelu;
  c.bias = m.bias();
  c.tied_head = m.tied_head();
  c.dropout = m.dropout();
  c.rope_base = m.rope_base();
  c.norm_epsilon = m.norm_epsilon();
  switch (job.training().recompute()) {
    case ringzero::Training::NONE: c.recompute = models::Recompute::none; break;
    case ringzero::Training::SELECTIVE: c.recompute = models::Recompute::selective; break;
    case ringzero::Training::FULL: c.recompute = models::Recompute::full; break;
    case ringzero::Training::SQRT: c.recompute = models::Recompute::sqrt; break;
  }
  return c;
}

LanguageTask::LanguageTask(const ringzero::Job& job, models::TokenDataset dataset)
    : seed_(job.seed()), dataset_(std::move(dataset)), model_(transformer_config(job, dataset_.vocabulary())) {
  RZ_CONFIG_CHECK(model_.config().vocabulary >= dataset_.vocabulary(), "transformer.vocabulary {} is smaller than the {} symbols of {}",
                  model_.config().vocabulary, dataset_.vocabulary(), dataset_.source());
  dataset_.check_context(model_.config().context);
}

optim::MicroLoss LanguageTask::train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) {
  const int64_t context = model_.config().context;
  const auto batch = [&] {
    const trace::Scope activity(trace::Activity::data);
    return models::make_train_batch(dataset_, seed_, step, samples.begin, samples.count(), context);
  }();
  const double scale = 1.0 / static_cast<double>(global_samples * context);
  auto result = model_.loss(batch.inputs, batch.targets, scale, {seed_, static_cast<uint64_t>(step), static_cast<uint64_t>(samples.begin)});
  return {std::move(result.loss), result.sum, result.count};
}

int64_t LanguageTask::evaluation_samples() const { return models::validation_windows(dataset_, model_.config().context); }

EvaluationSum LanguageTask::evaluate(models::SampleRange samples) {
  autograd::NoGrad no_grad;
  const bool was_training = model_.training();
  model_.train(false);
  const auto batch = models::make_validation_batch(dataset_, samples.begin, samples.count(), model_.config().context);
  const auto result = model_.loss(batch.inputs, batch.targets, 1.0);
  model_.train(was_training);
  return {result.sum, result.count};
}

std::string LanguageTask::generation_json() const {
  nlohmann::json json;
  json["size"] = model_.config().vocabulary;
  if (const auto& symbols = dataset_.symbols()) {
    std::vector<int> bytes;
    for (const char c : symbols->bytes()) bytes.push_back(static_cast<unsigned char>(c));
    json["bytes"] = bytes;
  }
  return json.dump() + "\n";
}

Vocabulary parse_vocabulary(const std::string& text, const std::string& path) {
  try {
    const auto json = nlohmann::json::parse(text);
    Vocabulary v;
    v.size = json.at("size").get<int64_t>();
    if (json.contains("bytes")) {
      std::string bytes;
      for (const int b : json.at("bytes").get<std::vector<int>>()) {
        RZ_CONFIG_CHECK(b >= 0 && b < 256, "{}: {} is not a byte", path, b);
        bytes += static_cast<char>(b);
      }
      v.symbols = models::TextSymbols::of_bytes(bytes);
    }
    return v;
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(fmt::format("{}: not a vocabulary: {}", path, e.what()));
  }
}

}  // namespace rz::tools
