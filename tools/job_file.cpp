#include "tools/job_file.h"

#include <google/protobuf/text_format.h>

#include <filesystem>
#include <span>

#include "models/data/file.h"
#include "runtime/core/error.h"
#include "tools/job_auto.h"
#include "tools/job_origins.h"
#include "tools/job_override.h"
#include "tools/job_parse.h"
#include "tools/job_schema.h"
#include "tools/job_validation.h"

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

void fill_message(pb::Message& message) {
  const pb::Descriptor& type = *message.GetDescriptor();
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const pb::FieldDescriptor* field = type.field(i);
    if (field->is_repeated()) continue;
    const bool is_set = reflection.HasField(message, field);
    const bool is_arm = field->real_containing_oneof() != nullptr;
    if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
      // Asking for a sample is a choice, diffusion is one model's (fill_defaults); all other messages outside oneofs are settings with defaults.
      const bool is_choice =
          is_arm || field->message_type() == ringzero::Sample::descriptor() || field->message_type() == ringzero::Diffusion::descriptor();
      if (is_set || !is_choice) fill_message(*reflection.MutableMessage(&message, field));
      continue;
    }
    if (is_set || is_arm) continue;
    switch (field->cpp_type()) {
      case pb::FieldDescriptor::CPPTYPE_INT32:
        reflection.SetInt32(&message, field, field->default_value_int32());
        break;
      case pb::FieldDescriptor::CPPTYPE_INT64:
        reflection.SetInt64(&message, field, field->default_value_int64());
        break;
      case pb::FieldDescriptor::CPPTYPE_UINT32:
        reflection.SetUInt32(&message, field, field->default_value_uint32());
        break;
      case pb::FieldDescriptor::CPPTYPE_UINT64:
        reflection.SetUInt64(&message, field, field->default_value_uint64());
        break;
      case pb::FieldDescriptor::CPPTYPE_FLOAT:
        reflection.SetFloat(&message, field, field->default_value_float());
        break;
      case pb::FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.SetDouble(&message, field, field->default_value_double());
        break;
      case pb::FieldDescriptor::CPPTYPE_BOOL:
        reflection.SetBool(&message, field, field->default_value_bool());
        break;
      case pb::FieldDescriptor::CPPTYPE_ENUM:
        reflection.SetEnum(&message, field, field->default_value_enum());
        break;
      case pb::FieldDescriptor::CPPTYPE_STRING:
        // A path or name without a default is required or derived, not empty.
        if (field->has_default_value()) reflection.SetString(&message, field, field->default_value_string());
        break;
      case pb::FieldDescriptor::CPPTYPE_MESSAGE:
        break;
    }
  }
}

// `auto` for its number. The printer takes ownership.
class AutoPrinter final : public pb::TextFormat::FastFieldValuePrinter {
 public:
  void PrintDouble(double value, pb::TextFormat::BaseTextGenerator* out) const override {
    if (value == kAuto) out->PrintLiteral("auto");
    else FastFieldValuePrinter::PrintDouble(value, out);
  }
};

}  // namespace

void fill_defaults(ringzero::Job& job) {
  if (job.optimizer().kind_case() == ringzero::Optimizer::KIND_NOT_SET) job.mutable_optimizer()->mutable_adamw();
  const bool noised = job.has_classifier() && job.classifier().noise_levels();
  if (job.has_unet() || job.has_dit() || noised) job.mutable_diffusion();
  fill_message(job);
}

ringzero::Job parse_job(std::string_view text, const std::string& file, const std::vector<std::string>& overrides) {
  JobOrigins origins(file);
  RZ_CONFIG_CHECK(text.size() <= kMaxJobBytes, "{}: {} bytes; a job file may have {}", file, text.size(), kMaxJobBytes);
  ringzero::Job job = parse_job_text(text, origins);
  for (const std::string& override_text : overrides) apply_override(job, override_text, origins);
  if (!job.has_name()) job.set_name(std::filesystem::path(file).stem().string());
  fill_defaults(job);
  validate_job(job, origins);
  return job;
}

ringzero::Job load_job(const std::string& path, const std::vector<std::string>& overrides) {
  const models::InputFile file(path);
  RZ_CONFIG_CHECK(file.size_bytes() <= static_cast<int64_t>(kMaxJobBytes), "{}: {} bytes; a job file may have {}", path, file.size_bytes(),
                  kMaxJobBytes);
  std::string text(static_cast<size_t>(file.size_bytes()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return parse_job(text, path, overrides);
}

std::string effective_text(const ringzero::Job& job) {
  ringzero::Job filled = job;
  fill_defaults(filled);
  pb::TextFormat::Printer printer;
  RZ_CHECK(printer.RegisterFieldValuePrinter(ringzero::Sharding::descriptor()->FindFieldByName("bucket_mb"), new AutoPrinter), "bucket_mb cannot be printed");
  std::string text;
  RZ_CHECK(printer.PrintToString(filled, &text), "the job '{}' cannot be printed", escaped(job.name()));
  return text;
}

}  // namespace rz::tools
