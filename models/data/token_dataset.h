// A corpus as tokens: one training and one validation sequence, from text (a byte a token) or from token files (uint16).
//
// * Copies share the tokens, which never change: one dataset may serve all ranks of a process. Thread-safe.
// * Tokens are counted in the memory ledger as Category::input of the rank that loaded them.
// * Does not cut batches (batch.h) and does not know ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/data/text_symbols.h"
#include "runtime/core/storage.h"

namespace rz::models {

// A sequence of tokens of one or two bytes each. A cheap handle.
class Tokens {
 public:
  Tokens() = default;
  // Uninitialized; fill through data(). `token_bytes` is 1 or 2.
  Tokens(int64_t count, int token_bytes, std::string owner);

  int64_t size() const { return count_; }
  int token_bytes() const { return token_bytes_; }
  int32_t operator[](int64_t i) const {
    return token_bytes_ == 1 ? static_cast<int32_t>(reinterpret_cast<const uint8_t*>(data_)[i])
                             : static_cast<int32_t>(reinterpret_cast<const uint16_t*>(data_)[i]);
  }
  // Tokens [begin, begin + out.size()), which must lie inside; rz::Error otherwise.
  void copy_to(int64_t begin, std::span<int32_t> out) const;
  std::byte* data() { return data_; }
  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(count_) * static_cast<size_t>(token_bytes_)}; }

 private:
  std::shared_ptr<Storage> storage_;
  std::byte* data_ = nullptr;
  int64_t count_ = 0;
  int token_bytes_ = 1;
};

// How much of a text of `total` bytes is held out.
int64_t held_out_bytes(int64_t total, double validation_fraction);

enum class Split { train, validation };
const char* name(Split split);

class TokenDataset {
 public:
  // Text whose last `validation_fraction`, in (0, 1), is held out. `source` names it in errors. ConfigError when a part would
  // have fewer than two tokens.
  static TokenDataset of_text(std::string_view text, double validation_fraction, std::string source);
  // Every token must be below `vocabulary`; the loaders see to it.
  static TokenDataset of_tokens(Tokens train, Tokens validation, int64_t vocabulary, std::string source);

  // How many different tokens there are; tokens lie in [0, vocabulary()).
  int64_t vocabulary() const { return vocabulary_; }
  const Tokens& tokens(Split split) const { return split == Split::train ? train_ : validation_; }
  // Where it came from, for messages.
  const std::string& source() const { return source_; }

  // The alphabet, when the dataset is text.
  const std::optional<TextSymbols>& symbols() const { return symbols_; }
  // Text to tokens and back; ConfigError when the dataset is not text or lacks a byte.
  std::vector<int32_t> encode(std::string_view text) const;
  std::string decode(std::span<const int32_t> tokens) const;

  // ConfigError naming both numbers unless the part (each part) holds a window of `context` tokens and their targets.
  void check_context(int64_t context, Split split) const;
  void check_context(int64_t context) const;

  // A hash of vocabulary and all tokens: equal on ranks that hold the same data.
  uint64_t digest() const;

 private:
  Tokens train_;
  Tokens validation_;
  int64_t vocabulary_ = 0;
  std::string source_;
  std::optional<TextSymbols> symbols_;
};

}  // namespace rz::models
