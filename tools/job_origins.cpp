#include "tools/job_origins.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <cctype>

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

constexpr int kTabWidth = 8;  // of google::protobuf::io::Tokenizer

void advance(TextPosition& at, char c) {
  if (c == '\n') {
    at = {at.line + 1, 0};
  } else {
    at.column += c == '\t' ? kTabWidth - at.column % kTabWidth : 1;
  }
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.'; }

}  // namespace

size_t offset_of(std::string_view text, TextPosition position) {
  TextPosition at;
  for (size_t i = 0; i < text.size(); ++i) {
    if (at.line > position.line || (at.line == position.line && (at.column >= position.column || text[i] == '\n'))) return i;
    advance(at, text[i]);
  }
  return text.size();
}

TextPosition position_of(std::string_view text, size_t offset) {
  TextPosition at;
  for (size_t i = 0; i < std::min(offset, text.size()); ++i) advance(at, text[i]);
  return at;
}

// Reads just enough of the text format to know the nesting: names, values, braces, strings and comments.
FieldContext field_context(std::string_view text, size_t offset) {
  std::vector<std::string> outer;
  std::string name;
  bool at_value = false;
  for (size_t i = 0; i < std::min(offset, text.size());) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"' || c == '\'') {
      for (++i; i < text.size() && text[i] != c && text[i] != '\n'; ++i) {
        if (text[i] == '\\') ++i;
      }
      ++i;
      at_value = false;
    } else if (c == '{' || c == '<') {
      outer.push_back(std::move(name));
      name.clear();
      at_value = false;
      ++i;
    } else if (c == '}' || c == '>') {
      if (!outer.empty()) outer.pop_back();
      name.clear();
      at_value = false;
      ++i;
    } else if (c == ':') {
      at_value = true;
      ++i;
    } else if (is_word(c)) {
      const size_t begin = i;
      while (i < text.size() && is_word(text[i])) ++i;
      if (!at_value) name = text.substr(begin, i - begin);
      at_value = false;
    } else {
      ++i;
    }
  }
  return {std::move(outer), std::move(name), at_value};
}

std::vector<std::string> FieldContext::path() const {
  auto path = outer;
  if (!name.empty()) path.push_back(name);
  return path;
}

std::string JobOrigins::in_file(TextPosition position) const {
  return fmt::format("{}:{}:{}", file_, position.line + 1, position.column + 1);
}

void JobOrigins::record(const pb::Message& message, const pb::TextFormat::ParseInfoTree& tree) { record(message, tree, ""); }

void JobOrigins::record(const pb::Message& message, const pb::TextFormat::ParseInfoTree& tree, const std::string& prefix) {
  std::vector<const pb::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const auto* field : fields) {
    const auto place = tree.GetLocation(field, field->is_repeated() ? 0 : -1);
    const std::string path = prefix + field->name();
    if (place.line >= 0) places_[path] = in_file({place.line, place.column});
    if (field->is_repeated() || field->cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (const auto* nested = tree.GetTreeForNested(field, -1))
      record(message.GetReflection()->GetMessage(message, field), *nested, path + ".");
  }
}

void JobOrigins::record_override(const std::string& path, std::string where) {
  const std::string below = path + ".";
  for (auto it = places_.lower_bound(below); it != places_.end() && it->first.starts_with(below);) it = places_.erase(it);
  places_[path] = std::move(where);
}

std::string JobOrigins::where(std::string path) const {
  while (true) {
    if (const auto found = places_.find(path); found != places_.end()) return found->second;
    const size_t dot = path.rfind('.');
    if (dot == std::string::npos) return in_file({});
    path.resize(dot);
  }
}

}  // namespace rz::tools
