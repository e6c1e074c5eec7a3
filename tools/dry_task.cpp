#include "tools/dry_task.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "models/data/load.h"
#include "tools/language_task.h"

namespace rz::tools {

namespace {

constexpr int64_t kTokenHeaderBytes = 1024;

// What is known of a corpus without its contents.
struct Outline {
  int64_t train_tokens = 0;
  int64_t validation_tokens = 0;
  int token_bytes = 1;
  int64_t vocabulary = 0;
  std::string source;
};

std::optional<int64_t> file_bytes(const std::string& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

int64_t count_symbols(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::array<bool, 256> seen{};
  std::vector<char> block(1 << 20);
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())), file.gcount() > 0)
    for (std::streamsize i = 0; i < file.gcount(); ++i) seen[static_cast<unsigned char>(block[static_cast<size_t>(i)])] = true;
  return std::count(seen.begin(), seen.end(), true);
}

// A corpus that is not here is taken to be as long as the model needs.
int64_t shortest(const ringzero::Job& job) { return job.transformer().context() + 1; }

Outline outline_tokens(const ringzero::Job& job, std::vector<std::string>& notes) {
  const auto length = [&](const std::string& path) {
    if (const auto bytes = file_bytes(path); bytes && *bytes >= kTokenHeaderBytes) return (*bytes - kTokenHeaderBytes) / 2;
    notes.push_back(fmt::format("{} is not here: the bytes of its tokens are left out", path));
    return shortest(job);
  };
  const auto& data = job.tokens();
  return {length(data.train_path()), length(data.validation_path()), 2, data.vocabulary(), data.train_path()};
}

Outline outline_text(const ringzero::Job& job, std::vector<std::string>& notes) {
  const auto& data = job.text();
  const int64_t given = job.transformer().vocabulary();
  int64_t total = models::kKingJamesBytes;
  int64_t symbols = models::kKingJamesSymbols;
  std::string source = "the King James Bible";
  if (!data.path().empty()) {
    source = data.path();
    const auto bytes = file_bytes(source);
    RZ_CONFIG_CHECK(bytes || given > 0, "{}: cannot be read, and transformer.vocabulary does not say how many symbols it has", source);
    symbols = given > 0 ? given : count_symbols(source);
    if (!bytes) {
      notes.push_back(fmt::format("{} is not here: the bytes of its text are left out", source));
      return {shortest(job), shortest(job), 1, symbols, source};
    }
    total = *bytes;
  }
  const auto held_out = models::held_out_bytes(total, data.validation_fraction());
  return {total - held_out, held_out, 1, symbols, source};
}

}  // namespace

std::unique_ptr<Task> make_dry_task(const ringzero::Job& job, std::vector<std::string>& notes) {
  RZ_CHECK(dry_run(), "a dry task outside a dry run");
  if (!job.has_transformer()) return make_image_task(job);
  RZ_CONFIG_CHECK(job.has_tokens() || job.has_text(), "the job names no data; give one of text, tokens");
  const Outline o = job.has_tokens() ? outline_tokens(job, notes) : outline_text(job, notes);
  const auto tokens = [&](int64_t count, const char* split) { return models::Tokens(count, o.token_bytes, fmt::format("{} {}", o.source, split)); };
  auto train = tokens(o.train_tokens, "training");
  auto validation = tokens(o.validation_tokens, "validation");
  return std::make_unique<LanguageTask>(job, models::TokenDataset::of_tokens(std::move(train), std::move(validation), o.vocabulary, o.source));
}

}  // namespace rz::tools
