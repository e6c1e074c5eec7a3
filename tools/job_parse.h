// Protobuf text to a message, with errors that name place, field and valid choices. Any bytes are safe.
//
// Checks syntax and types only; what values mean is the business of job_validation.h. Thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>

#include "proto/job.pb.h"
#include "tools/job_origins.h"

namespace rz::tools {

// ConfigError `file:line:column: what, value, valid choices` for the first problem. Fills `origins` with the place of each field.
ringzero::Job parse_job_text(std::string_view text, JobOrigins& origins);

// Parses a message without places: false and the parser's first complaint when it fails.
bool parse_quietly(const std::string& text, google::protobuf::Message& message, std::string& problem);

}  // namespace rz::tools
