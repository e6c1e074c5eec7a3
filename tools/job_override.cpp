#include "tools/job_override.h"

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <vector>

#include "runtime/core/error.h"
#include "tools/job_auto.h"
#include "tools/job_parse.h"
#include "tools/job_schema.h"

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

// The whole of `text` as a number; false when it is none or does not fit.
template <class T>
bool parse_number(std::string_view text, T& out) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

// Sets the field of `message`; false when `value` is not of its type.
bool set_field(pb::Message& message, const pb::FieldDescriptor& field, const std::string& value) {
  const pb::Reflection& reflection = *message.GetReflection();
  const auto set_number = [&]<class T>(void (pb::Reflection::*set)(pb::Message*, const pb::FieldDescriptor*, T) const) {
    T number{};
    if (!parse_number(value, number)) return false;
    (reflection.*set)(&message, &field, number);
    return true;
  };
  switch (field.cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_INT32:
      return set_number(&pb::Reflection::SetInt32);
    case pb::FieldDescriptor::CPPTYPE_INT64:
      return set_number(&pb::Reflection::SetInt64);
    case pb::FieldDescriptor::CPPTYPE_UINT32:
      return set_number(&pb::Reflection::SetUInt32);
    case pb::FieldDescriptor::CPPTYPE_UINT64:
      return set_number(&pb::Reflection::SetUInt64);
    case pb::FieldDescriptor::CPPTYPE_FLOAT:
      return set_number(&pb::Reflection::SetFloat);
    case pb::FieldDescriptor::CPPTYPE_DOUBLE:
      if (value == "auto" && accepts_auto(field)) {
        reflection.SetDouble(&message, &field, kAuto);
        return true;
      }
      return set_number(&pb::Reflection::SetDouble);
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      if (value != "true" && value != "false") return false;
      reflection.SetBool(&message, &field, value == "true");
      return true;
    case pb::FieldDescriptor::CPPTYPE_ENUM: {
      const auto* found = field.enum_type()->FindValueByName(upper(value));
      if (found != nullptr) reflection.SetEnum(&message, &field, found);
      return found != nullptr;
    }
    case pb::FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(&message, &field, value);
      return true;
    case pb::FieldDescriptor::CPPTYPE_MESSAGE: {
      if (value.size() < 2 || value.front() != '{' || value.back() != '}') return false;
      pb::Message* nested = reflection.MutableMessage(&message, &field);
      nested->Clear();
      std::string problem;
      if (!parse_quietly(value.substr(1, value.size() - 2), *nested, problem)) throw ConfigError(problem);
      return true;
    }
  }
  return false;
}

}  // namespace

void apply_override(ringzero::Job& job, const std::string& text, JobOrigins& origins) {
  const std::string where = fmt::format("--set {}", escaped(text, 120));
  const size_t equals = text.find('=');
  RZ_CONFIG_CHECK(equals != std::string::npos && equals > 0, "{}: expected path.to.field=value, such as training.steps=100", where);
  const std::string path = text.substr(0, equals);
  const std::string value = text.substr(equals + 1);

  pb::Message* message = &job;
  std::string walked = "the job";
  for (size_t begin = 0;;) {
    const size_t dot = path.find('.', begin);
    const std::string word = path.substr(begin, dot - begin);
    const pb::FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(word);
    RZ_CONFIG_CHECK(field != nullptr, "{}: {} has no field '{}'; valid: {}", where, walked, escaped(word, 60),
                    list_fields(*message->GetDescriptor(), word));
    RZ_CONFIG_CHECK(!field->is_repeated(), "{}: {} is a list and cannot be set here", where, word);
    if (dot == std::string::npos) {
      bool fits = false;
      try {
        fits = set_field(*message, *field, value);
      } catch (const ConfigError& error) {
        throw ConfigError(fmt::format("{}: {}", where, error.what()));
      }
      const bool is_text = field->cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING;
      RZ_CONFIG_CHECK(fits, "{}: '{}' does not fit {}; valid: {}", where, escaped(value, 60), path,
                      is_text ? "text" : describe_values(*field));
      break;
    }
    RZ_CONFIG_CHECK(field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE, "{}: {} has no fields of its own; valid: {}", where, word,
                    describe_values(*field));
    message = message->GetReflection()->MutableMessage(message, field);
    walked = path.substr(0, dot);
    begin = dot + 1;
  }
  origins.record_override(path, where);
}

}  // namespace rz::tools
