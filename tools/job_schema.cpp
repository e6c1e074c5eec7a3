#include "tools/job_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "proto/job.pb.h"
#include "tools/job_auto.h"

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

// Levenshtein's distance: the fewest single-character insertions, deletions and replacements.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string join(const std::vector<std::string>& words) { return fmt::format("{}", fmt::join(words, ", ")); }

}  // namespace

std::string escaped(std::string_view text, size_t limit) {
  std::string out;
  for (const char c : text) {
    if (out.size() >= limit) return out + "...";
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out.push_back(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  return out;
}

std::string list_fields(const pb::Descriptor& message, std::string_view wanted) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  // Beyond some length nothing is close, and the distance costs the product of the lengths.
  if (!wanted.empty() && wanted.size() <= 64) {
    std::stable_sort(names.begin(), names.end(),
                     [&](const std::string& a, const std::string& b) { return edit_distance(a, wanted) < edit_distance(b, wanted); });
  }
  return join(names);
}

std::string list_values(const pb::EnumDescriptor& values) {
  std::vector<std::string> names;
  for (int i = 0; i < values.value_count(); ++i) names.push_back(values.value(i)->name());
  return join(names);
}

std::string describe_values(const pb::FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_INT32:
    case pb::FieldDescriptor::CPPTYPE_INT64:
      return "an integer";
    case pb::FieldDescriptor::CPPTYPE_UINT32:
    case pb::FieldDescriptor::CPPTYPE_UINT64:
      return "an integer, 0 or more";
    case pb::FieldDescriptor::CPPTYPE_DOUBLE:
    case pb::FieldDescriptor::CPPTYPE_FLOAT:
      return accepts_auto(field) ? "a number or auto" : "a number";
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case pb::FieldDescriptor::CPPTYPE_ENUM:
      return "one of " + list_values(*field.enum_type());
    case pb::FieldDescriptor::CPPTYPE_STRING:
      return "text in quotes";
    case pb::FieldDescriptor::CPPTYPE_MESSAGE:
      return "{...} with the fields " + list_fields(*field.message_type());
  }
  return "?";
}

const pb::FieldDescriptor* find_field(const std::vector<std::string>& path) {
  const pb::Descriptor* message = ringzero::Job::descriptor();
  const pb::FieldDescriptor* field = nullptr;
  for (const std::string& name : path) {
    if (message == nullptr) return nullptr;
    field = message->FindFieldByName(name);
    if (field == nullptr) return nullptr;
    message = field->message_type();
  }
  return field;
}

std::string join_path(const std::vector<std::string>& path) { return fmt::format("{}", fmt::join(path, ".")); }

}  // namespace rz::tools
