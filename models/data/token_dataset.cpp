#include "models/data/token_dataset.h"

#include <cmath>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "runtime/core/shape.h"

namespace rz::models {

Tokens::Tokens(int64_t count, int token_bytes, std::string owner) : count_(count), token_bytes_(token_bytes) {
  RZ_CHECK(count >= 0 && (token_bytes == 1 || token_bytes == 2), "{} tokens of {} bytes cannot be", count, token_bytes);
  const int64_t bytes = checked_multiply(count, token_bytes, owner);
  storage_ = Storage::make(static_cast<size_t>(bytes), Category::input, std::move(owner));
  data_ = storage_->data();
}

void Tokens::copy_to(int64_t begin, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  RZ_CHECK(begin >= 0 && count <= count_ && begin <= count_ - count, "tokens [{}, {} + {}) asked of {}", begin, begin, count, count_);
  for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = (*this)[begin + i];
}

const char* name(Split split) { return split == Split::train ? "training" : "validation"; }

int64_t held_out_bytes(int64_t total, double validation_fraction) {
  return static_cast<int64_t>(std::llround(static_cast<double>(total) * validation_fraction));
}

TokenDataset TokenDataset::of_text(std::string_view text, double validation_fraction, std::string source) {
  RZ_CONFIG_CHECK(validation_fraction > 0 && validation_fraction < 1, "validation fraction {} is not between 0 and 1", validation_fraction);
  const auto total = static_cast<int64_t>(text.size());
  const int64_t held_out = held_out_bytes(total, validation_fraction);
  RZ_CONFIG_CHECK(held_out >= 2 && total - held_out >= 2, "{} has {} bytes: too few to hold out a fraction of {} for validation", source,
                  total, validation_fraction);
  TokenDataset dataset;
  // One alphabet for both parts: validation must not meet a symbol that the model does not have.
  dataset.symbols_ = TextSymbols::of_text(text);
  const auto to_tokens = [&](std::string_view part, Split split) {
    Tokens tokens(static_cast<int64_t>(part.size()), 1, fmt::format("{} text", name(split)));
    for (size_t i = 0; i < part.size(); ++i) tokens.data()[i] = static_cast<std::byte>(dataset.symbols_->symbol_of(part[i]));
    return tokens;
  };
  dataset.train_ = to_tokens(text.substr(0, static_cast<size_t>(total - held_out)), Split::train);
  dataset.validation_ = to_tokens(text.substr(static_cast<size_t>(total - held_out)), Split::validation);
  dataset.vocabulary_ = dataset.symbols_->size();
  dataset.source_ = std::move(source);
  return dataset;
}

TokenDataset TokenDataset::of_tokens(Tokens train, Tokens validation, int64_t vocabulary, std::string source) {
  TokenDataset dataset;
  dataset.train_ = std::move(train);
  dataset.validation_ = std::move(validation);
  dataset.vocabulary_ = vocabulary;
  dataset.source_ = std::move(source);
  return dataset;
}

std::vector<int32_t> TokenDataset::encode(std::string_view text) const {
  RZ_CONFIG_CHECK(symbols_, "{} holds tokens, not text: text cannot be encoded without its tokenizer", source_);
  return symbols_->encode(text);
}

std::string TokenDataset::decode(std::span<const int32_t> tokens) const {
  RZ_CONFIG_CHECK(symbols_, "{} holds tokens, not text: tokens cannot be decoded without their tokenizer", source_);
  return symbols_->decode(tokens);
}

void TokenDataset::check_context(int64_t context, Split split) const {
  RZ_CHECK(context >= 1, "a context of {} tokens", context);
  const int64_t count = tokens(split).size();
  RZ_CONFIG_CHECK(count > context, "the context of {} tokens is longer than the {} part of {}, {} tokens: it may be at most {}", context,
                  name(split), source_, count, count - 1);
}

void TokenDataset::check_context(int64_t context) const {
  check_context(context, Split::train);
  check_context(context, Split::validation);
}

uint64_t TokenDataset::digest() const {
  const auto hash_of = [](const Tokens& tokens) {
    const auto bytes = tokens.bytes();
    return stable_hash({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  };
  return stable_hash(
      fmt::format("{} {:x} {:x} {} {}", vocabulary_, hash_of(train_), hash_of(validation_), train_.size(), train_.token_bytes()));
}

}  // namespace rz::models
