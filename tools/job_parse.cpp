#include "tools/job_parse.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <regex>
#include <vector>

#include "runtime/core/error.h"
#include "tools/job_auto.h"
#include "tools/job_schema.h"

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

// The schema nests three deep; the parser recurses once a level, so hostile nesting must end early.
constexpr int kMaxNesting = 16;

// Keeps the first error: later ones are often consequences.
class FirstError : public pb::io::ErrorCollector {
 public:
  struct Problem {
    TextPosition position;
    std::string message;
  };
  void AddError(int line, pb::io::ColumnNumber column, const std::string& message) override {
    if (!problem_) problem_ = Problem{{std::max(line, 0), std::max(column, 0)}, message};
  }
  const std::optional<Problem>& problem() const { return problem_; }

 private:
  std::optional<Problem> problem_;
};

bool parse(const std::string& text, pb::Message& message, FirstError& errors, pb::TextFormat::ParseInfoTree* tree) {
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.SetRecursionLimit(kMaxNesting);
  if (tree != nullptr) parser.WriteLocationsTo(tree);
  return parser.ParseFromString(with_auto_as_number(text), &message);
}

std::string lower_first(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  if (text.ends_with('.')) text.pop_back();
  return text;
}

// Protobuf reports some problems at the token after the culprit: the last place of `word` that starts at or before `offset`.
size_t rewind_to(std::string_view text, size_t offset, std::string_view word) {
  const size_t found = text.rfind(word, offset);
  return found == std::string_view::npos ? offset : found;
}

// The parser's complaint in this program's words, with the choices that the schema leaves. `offset` moves to the culprit.
std::string explain(std::string_view text, const std::string& said, size_t& offset) {
  static const std::regex unknown_field(R"re(Message type "[^"]*" has no field named "([^"]*)"\.)re");
  static const std::regex unknown_value(R"re(Unknown enumeration value of "([^"]*)" for field "[^"]*"\.)re");
  static const std::regex bad_bool(R"re(Invalid value for boolean field "[^"]*"\. Value: "([^"]*)"\.)re");
  static const std::regex twice(R"re(Non-repeated field "([^"]*)" is specified multiple times\.)re");
  static const std::regex two_arms(R"re(Field "([^"]*)" is specified along with field "([^"]*)", another member of oneof "([^"]*)"\.)re");

  const auto path_to = [&](const std::string& field) {  // the path of `field`, whose name stands at `offset`
    offset = rewind_to(text, offset, field);
    auto path = field_context(text, offset).outer;
    path.push_back(field);
    return path;
  };
  std::smatch match;
  if (said.size() > 1000) return lower_first(said);  // std::regex recurses with the length of its input
  if (std::regex_match(said, match, unknown_field)) {
    auto path = path_to(match.str(1));
    path.pop_back();
    const auto* outer = find_field(path);
    const auto* message = path.empty() ? ringzero::Job::descriptor() : outer == nullptr ? nullptr : outer->message_type();
    return fmt::format("{} has no field '{}'{}", path.empty() ? "the job" : join_path(path), match.str(1).substr(0, 60),
                       message == nullptr ? "" : "; valid: " + list_fields(*message, match.str(1)));
  }
  if (std::regex_match(said, match, unknown_value) || std::regex_match(said, match, bad_bool)) {
    offset = rewind_to(text, offset, match.str(1));
    const auto path = field_context(text, offset).path();
    const auto* field = find_field(path);
    return fmt::format("{}: unknown value {}{}", join_path(path), match.str(1).substr(0, 60),
                       field == nullptr ? "" : "; valid: " + describe_values(*field));
  }
  if (std::regex_match(said, match, twice)) return fmt::format("{} is given twice", join_path(path_to(match.str(1))));
  if (std::regex_match(said, match, two_arms)) {
    const auto path = path_to(match.str(1));
    return fmt::format("{} is given beside {}: there can be only one {}", join_path(path), match.str(2), match.str(3));
  }
  if (said.ends_with("got: ")) return lower_first(said) + "the end of the file";
  const FieldContext context = field_context(text, offset);
  const auto* field = context.at_value ? find_field(context.path()) : nullptr;
  if (field == nullptr) return lower_first(said);
  return fmt::format("{}: {}; valid: {}", join_path(context.path()), lower_first(said), describe_values(*field));
}

}  // namespace

ringzero::Job parse_job_text(std::string_view text, JobOrigins& origins) {
  ringzero::Job job;
  FirstError errors;
  pb::TextFormat::ParseInfoTree tree;
  if (!parse(std::string(text), job, errors, &tree)) {
    const auto problem = errors.problem().value_or(FirstError::Problem{{}, "cannot be parsed"});
    size_t offset = offset_of(text, problem.position);
    const std::string what = explain(text, problem.message, offset);
    throw ConfigError(fmt::format("{}: {}", origins.in_file(position_of(text, offset)), escaped(what, 800)));
  }
  origins.record(job, tree);
  return job;
}

bool parse_quietly(const std::string& text, pb::Message& message, std::string& problem) {
  FirstError errors;
  if (parse(text, message, errors, nullptr)) return true;
  problem = escaped(errors.problem() ? lower_first(errors.problem()->message) : "cannot be parsed", 300);
  return false;
}

}  // namespace rz::tools
