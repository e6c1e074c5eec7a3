// Next-token prediction with a Transformer on a token dataset; and the model alone, for generating from a trained run.
#pragma once

#include "models/data/token_dataset.h"
#include "models/transformer/generate.h"
#include "tools/task.h"

namespace rz::tools {

// The job's messages as the runtime's structs. `vocabulary` stands in where the job leaves it to the data.
models::TransformerConfig transformer_config(const ringzero::Job& job, int64_t vocabulary);

// The job's text or token files.
models::TokenDataset load_tokens(const ringzero::Job& job);

class LanguageTask final : public Task {
 public:
  LanguageTask(const ringzero::Job& job, models::TokenDataset dataset);

  nn::Module& module() override { return model_; }
  models::Transformer& transformer() { return model_; }
  optim::MicroLoss train_loss(int64_t step, models::SampleRange samples, int64_t global_samples) override;
  int64_t items_per_sample() const override { return model_.config().context; }
  int64_t evaluation_samples() const override;
  EvaluationSum evaluate(models::SampleRange samples) override;
  uint64_t data_digest() const override { return dry_run() ? 0 : dataset_.digest(); }
  std::string generation_json() const override;

 private:
  uint64_t seed_;
  models::TokenDataset dataset_;
  models::Transformer model_;
};

// What generation_json() said: the number of symbols and, for text, the alphabet.
struct Vocabulary {
  int64_t size = 0;
  std::optional<models::TextSymbols> symbols;
};
Vocabulary parse_vocabulary(const std::string& json, const std::string& path);

}  // namespace rz::tools
