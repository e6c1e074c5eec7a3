// The word `auto`, for numbers that a run may choose itself: `bucket_mb: auto`. The message holds kAuto for it,
// a number that nobody means.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <string_view>

namespace rz::tools {

inline constexpr double kAuto = -9e9;

// Whether the field's value may be `auto`.
bool accepts_auto(const google::protobuf::FieldDescriptor& field);

// Protobuf text with `auto` where a field accepts it written as the number, at the same length: places in errors stay.
std::string with_auto_as_number(std::string_view text);

}  // namespace rz::tools
