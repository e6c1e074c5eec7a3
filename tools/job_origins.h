// Where each value of a job came from, for errors: a place in the job file or an override on the command line.
//
// Also finds which field a place in the text belongs to, because protobuf's own parse errors often do not say. Not thread-safe.
#pragma once

#include <google/protobuf/text_format.h>

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace rz::tools {

// A 0-based line and column as protobuf counts them: a tab reaches to the next multiple of 8.
struct TextPosition {
  int line = 0;
  int column = 0;
};

size_t offset_of(std::string_view text, TextPosition position);
TextPosition position_of(std::string_view text, size_t offset);

// What stands around a place in the text: the messages it is inside, the last field named there, and whether that field's
// value is what comes next.
struct FieldContext {
  std::vector<std::string> outer;
  std::string name;
  bool at_value = false;
  // `outer` and `name` together.
  std::vector<std::string> path() const;
};
FieldContext field_context(std::string_view text, size_t offset);

class JobOrigins {
 public:
  explicit JobOrigins(std::string file) : file_(std::move(file)) {}

  // "file:line:column" with 1-based numbers.
  std::string in_file(TextPosition position) const;
  // Remembers the place of every field that the parsed message has.
  void record(const google::protobuf::Message& message, const google::protobuf::TextFormat::ParseInfoTree& tree);
  // Remembers that `path` (and all below it) came from an override.
  void record_override(const std::string& path, std::string where);

  // The place of "training.steps", of the message around it when it is not set itself, or of the file.
  std::string where(std::string path) const;
  // Whether the field itself was set, not only a message around it.
  bool is_set(const std::string& path) const { return places_.contains(path); }

 private:
  void record(const google::protobuf::Message& message, const google::protobuf::TextFormat::ParseInfoTree& tree, const std::string& prefix);

  std::string file_;
  std::map<std::string, std::string> places_;
};

}  // namespace rz::tools
