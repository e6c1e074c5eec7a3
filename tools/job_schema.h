// What the job schema allows, in words: lists of fields and enum values for error messages, and paths through the schema.
//
// Everything comes from the message descriptors, so a new field in proto/job.proto needs no line here. Thread-safe.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <string_view>
#include <vector>

namespace rz::tools {

// Text that is safe inside a one-line message: bytes outside printable ASCII as escapes, at most `limit` characters.
std::string escaped(std::string_view text, size_t limit = 400);

// "width, heads, ...": the message's fields, those closest in spelling to `wanted` first.
std::string list_fields(const google::protobuf::Descriptor& message, std::string_view wanted = "");

// "LEARNED, ROPE": the enum's names.
std::string list_values(const google::protobuf::EnumDescriptor& values);

// What a value of the field may be: "an integer", "true or false", "one of LEARNED, ROPE", ...
std::string describe_values(const google::protobuf::FieldDescriptor& field);

// The field that a path of names from the job's root leads to, or null.
const google::protobuf::FieldDescriptor* find_field(const std::vector<std::string>& path);

// "training.steps"
std::string join_path(const std::vector<std::string>& path);

}  // namespace rz::tools
