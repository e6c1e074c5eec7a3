// Where corpora come from: text files, the King James Bible of two Debian packages, and llm.c token files.
//
// All loaders check what they read before they trust it: every problem is a ConfigError of one line naming file and value.
// Not COLLECTIVE: each rank may load for itself, or one may and share the dataset.
#pragma once

#include <cstdint>
#include <string>

#include "models/data/token_dataset.h"

namespace rz::models {

// The King James Bible as load_king_james_bible gives it: bytes, and how many different ones.
inline constexpr int64_t kKingJamesBytes = 4137850;
inline constexpr int64_t kKingJamesSymbols = 63;

// Any file of bytes.
TokenDataset load_text_file(const std::string& path, double validation_fraction);

// The King James Bible, 31,102 verses, one a line, without their references (4,137,850 bytes), printed by the program
// `bible` of the packages bible-kjv and bible-kjv-text. Another text than that is an error.
TokenDataset load_king_james_bible(double validation_fraction, const std::string& program = "bible");

// Two files in llm.c's format: a header of 256 int32 (magic 20240520, version 1, token count, the rest unused), then the
// tokens as uint16, nothing more.
TokenDataset load_token_files(const std::string& train_path, const std::string& validation_path, int64_t vocabulary);

// One such file; every token is checked against `vocabulary` (1 to 65,536).
Tokens read_token_file(const std::string& path, int64_t vocabulary);

}  // namespace rz::models
