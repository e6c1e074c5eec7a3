// llm.c token files. The header is believed only as far as the file's size bears it out.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "models/data/file.h"
#include "models/data/load.h"
#include "runtime/core/error.h"

namespace rz::models {
namespace {

constexpr int32_t kMagic = 20240520;
constexpr int32_t kVersion = 1;
constexpr int64_t kHeaderBytes = 256 * 4;
constexpr int64_t kTokenBytes = 2;

}  // namespace

Tokens read_token_file(const std::string& path, int64_t vocabulary) {
  RZ_CONFIG_CHECK(vocabulary >= 1 && vocabulary <= 65536, "{}: a vocabulary of {} does not fit 16-bit tokens (1 to 65536)", path,
                  vocabulary);
  const InputFile file(path);
  RZ_CONFIG_CHECK(file.size_bytes() >= kHeaderBytes, "{}: truncated: {} bytes, but the header alone has {}", path, file.size_bytes(),
                  kHeaderBytes);
  std::array<int32_t, 256> header{};
  file.read_at(0, std::as_writable_bytes(std::span(header)));
  RZ_CONFIG_CHECK(header[0] == kMagic, "{}: not an llm.c token file: magic number {}, expected {}", path, header[0], kMagic);
  RZ_CONFIG_CHECK(header[1] == kVersion, "{}: format version {}, expected {}", path, header[1], kVersion);
  const int64_t count = header[2];
  const int64_t body_bytes = file.size_bytes() - kHeaderBytes;
  RZ_CONFIG_CHECK(count >= 0, "{}: token count {} is negative", path, count);
  RZ_CONFIG_CHECK(count <= body_bytes / kTokenBytes, "{}: truncated: the header promises {} tokens, the file holds {}", path, count,
                  body_bytes / kTokenBytes);
  RZ_CONFIG_CHECK(count * kTokenBytes == body_bytes, "{}: {} bytes follow the {} tokens that the header promises", path,
                  body_bytes - count * kTokenBytes, count);
  RZ_CONFIG_CHECK(count >= 2, "{}: {} tokens: at least 2 are needed", path, count);

  Tokens tokens(count, static_cast<int>(kTokenBytes), path);
  file.read_at(kHeaderBytes, {tokens.data(), static_cast<size_t>(body_bytes)});
  for (int64_t i = 0; i < count; ++i) {
    RZ_CONFIG_CHECK(tokens[i] < vocabulary, "{}: token {} at position {} is not below the vocabulary of {}", path, tokens[i], i,
                    vocabulary);
  }
  return tokens;
}

TokenDataset load_token_files(const std::string& train_path, const std::string& validation_path, int64_t vocabulary) {
  Tokens train = read_token_file(train_path, vocabulary);
  Tokens validation = read_token_file(validation_path, vocabulary);
  return TokenDataset::of_tokens(std::move(train), std::move(validation), vocabulary,
                                 train_path == validation_path ? train_path : fmt::format("{} and {}", train_path, validation_path));
}

}  // namespace rz::models
