#include "tools/job_auto.h"

#include <cctype>

namespace rz::tools {

namespace {

constexpr std::string_view kWord = "auto";
constexpr std::string_view kNumber = "-9e9";
constexpr std::string_view kField = "bucket_mb";

bool is_word_character(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// The end of the comment, quoted text, word or other character that begins at `at`.
size_t token_end(std::string_view text, size_t at) {
  const char c = text[at];
  if (c == '#') return std::min(text.find('\n', at), text.size());
  if (c == '"' || c == '\'') {
    for (++at; at < text.size() && text[at] != c && text[at] != '\n'; ++at)
      if (text[at] == '\\') ++at;
    return std::min(at + 1, text.size());
  }
  size_t end = at + 1;
  if (is_word_character(c))
    while (end < text.size() && is_word_character(text[end])) ++end;
  return end;
}

}  // namespace

bool accepts_auto(const google::protobuf::FieldDescriptor& field) { return field.name() == kField; }

std::string with_auto_as_number(std::string_view text) {
  std::string out(text);
  // The last two tokens, comments and white space left out.
  std::string_view before_last, last;
  for (size_t at = 0; at < text.size();) {
    const size_t end = token_end(text, at);
    const std::string_view token = text.substr(at, end - at);
    if (token == kWord && last == ":" && before_last == kField) out.replace(at, kWord.size(), kNumber);
    if (token[0] != '#' && std::isspace(static_cast<unsigned char>(token[0])) == 0) before_last = last, last = token;
    at = end;
  }
  return out;
}

}  // namespace rz::tools
