// Job files: protobuf text to a checked message and back.
//
// Every problem is a ConfigError of one line, `file:line:column: what, value, valid choices`; what an override broke is named
// by the override, `--set path=value`. Any bytes are safe to parse: size and nesting are limited.
// Does not read data files and does not turn messages into the runtime's structs. Thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "proto/job.pb.h"

namespace rz::tools {

// A job file may have at most this many bytes.
inline constexpr size_t kMaxJobBytes = size_t{1} << 20;

// Reads, overrides, fills in every default and checks everything that can be checked without the data. Each override is
// `path.to.field=value`, applied in order: enums by name, strings without quotes, a message as `{field: value}`; naming a
// field of a oneof's arm selects that arm.
ringzero::Job load_job(const std::string& path, const std::vector<std::string>& overrides = {});

// The same from text; `file` names it in errors and gives the job its default name.
ringzero::Job parse_job(std::string_view text, const std::string& file, const std::vector<std::string>& overrides = {});

// The job as protobuf text with every default filled in; load_job reads back the same message.
std::string effective_text(const ringzero::Job& job);

// Sets what is unset to its default: scalars, messages, and the arm `adamw` of the optimizer. The arms of `model` and `data` and
// the message `sample` stay as they are; so does `diffusion` where the model has no use for it.
void fill_defaults(ringzero::Job& job);

}  // namespace rz::tools
