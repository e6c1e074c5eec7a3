#include "optim/checkpoint/manifest.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <limits>
#include <span>

#include "optim/checkpoint/digest.h"
#include "optim/checkpoint/text.h"
#include "proto/checkpoint.pb.h"

namespace rz::optim::checkpoint {

namespace {

namespace pb = ::ringzero::checkpoint;

bool is_safe_file_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= 128 && name != "." && name != ".." && std::all_of(name.begin(), name.end(), allowed);
}

template <class Message>
bool parse(Message& message, std::string_view bytes) {
  return message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

pb::Manifest to_proto(const Manifest& manifest) {
  pb::Manifest out;
  out.set_format_version(kFormatVersion);
  pb::RunState& run = *out.mutable_run();
  const CheckpointInfo& info = manifest.info;
  run.set_step(info.step);
  run.set_world_size(info.world_size);
  run.set_stage(info.stage);
  run.set_seed(info.seed);
  run.set_data_cursor(info.data_cursor);
  run.set_job_text(info.job_text);
  run.set_job_xxh64(digest_of(info.job_text));
  for (const auto& [name, value] : info.scalars) (*run.mutable_scalars())[name] = value;
  for (const auto& [name, value] : info.counters) (*run.mutable_counters())[name] = value;
  for (const StoredTensor& tensor : manifest.tensors) {
    pb::Tensor& t = *out.add_tensors();
    t.set_name(tensor.name);
    t.set_dtype(name(tensor.dtype));
    for (const int64_t extent : tensor.shape.extents()) t.add_shape(extent);
    for (const StoredRange& range : tensor.ranges) {
      pb::Range& r = *t.add_ranges();
      r.set_shard(range.shard);
      r.set_begin(range.begin);
      r.set_end(range.end);
      r.set_xxh64(range.digest);
    }
  }
  for (const StoredShard& shard : manifest.shards) {
    pb::Shard& s = *out.add_shards();
    s.set_file(shard.file);
    s.set_bytes(shard.bytes);
    s.set_xxh64(shard.digest);
  }
  return out;
}

CheckpointInfo run_from_proto(const pb::RunState& run, const std::string& path) {
  const auto require = [&](bool good, const char* what) {
    if (!good) throw Error(fmt::format("{} is damaged: {}", path, what));
  };
  require(run.step() >= 0, "negative step");
  require(run.world_size() >= 1 && run.world_size() <= std::numeric_limits<int>::max(), "impossible world size");
  require(run.stage() >= 0 && run.stage() <= std::numeric_limits<int>::max(), "impossible stage");
  require(run.job_xxh64() == digest_of(run.job_text()), "the job text does not match its digest");
  CheckpointInfo info;
  info.step = run.step();
  info.world_size = static_cast<int>(run.world_size());
  info.stage = static_cast<int>(run.stage());
  info.seed = run.seed();
  info.data_cursor = run.data_cursor();
  info.job_text = run.job_text();
  info.job_digest = run.job_xxh64();
  info.scalars.insert(run.scalars().begin(), run.scalars().end());
  info.counters.insert(run.counters().begin(), run.counters().end());
  return info;
}

StoredTensor tensor_from_proto(const pb::Tensor& t, int shards, const std::string& path) {
  StoredTensor tensor;
  tensor.name = t.name();
  const std::string what = fmt::format("{}: tensor {}", path, printable(tensor.name));
  if (tensor.name.empty()) throw Error(what + " has no name");
  try {
    tensor.dtype = parse_dtype(t.dtype());
    tensor.shape = Shape(std::span<const int64_t>(t.shape().data(), static_cast<size_t>(t.shape_size())));
    checked_multiply(tensor.shape.numel(), static_cast<int64_t>(size_bytes(tensor.dtype)), "bytes");
  } catch (const Error& e) {
    throw Error(fmt::format("{}: {}", what, e.what()));
  }
  for (const pb::Range& r : t.ranges()) {
    if (r.shard() < 0 || r.shard() >= shards) throw Error(fmt::format("{} refers to shard {} of {}", what, r.shard(), shards));
    tensor.ranges.push_back({r.shard(), r.begin(), r.end(), r.xxh64()});
  }
  check_coverage(tensor, path);
  return tensor;
}

}  // namespace

std::string entry_name(const std::string& tensor, const Shape& shape, int64_t begin, int64_t end) {
  return begin == 0 && end == shape.numel() ? tensor : fmt::format("{}[{}:{}]", tensor, begin, end);
}

std::string shard_name(int rank, int size) { return fmt::format("shard-{:05}-of-{:05}.safetensors", rank, size); }

void check_coverage(StoredTensor& tensor, const std::string& what) {
  auto& ranges = tensor.ranges;
  std::sort(ranges.begin(), ranges.end(), [](const StoredRange& a, const StoredRange& b) { return a.begin < b.begin; });
  const int64_t numel = tensor.shape.numel();
  int64_t at = 0;
  for (const StoredRange& range : ranges) {
    if (range.begin < 0 || range.begin >= range.end || range.end > numel)
      throw Error(fmt::format("{}: tensor {} has the impossible range [{}, {}) of {} elements", what, printable(tensor.name), range.begin,
                              range.end, numel));
    if (range.begin != at)
      throw Error(fmt::format("{}: elements [{}, {}) of tensor {} are {}", what, std::min(at, range.begin), std::max(at, range.begin),
                              printable(tensor.name), range.begin > at ? "missing" : "there more than once"));
    at = range.end;
  }
  if (at != numel) throw Error(fmt::format("{}: elements [{}, {}) of tensor {} are missing", what, at, numel, printable(tensor.name)));
}

std::string encode_manifest(const Manifest& manifest) {
  pb::ManifestFile file;
  {
    // Deterministic: map fields in key order, so that equal states are equal bytes.
    google::protobuf::io::StringOutputStream stream(file.mutable_manifest());
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    const pb::Manifest message = to_proto(manifest);
    RZ_CHECK(message.ByteSizeLong() <= kMaxManifestBytes / 2, "a manifest of {} bytes is too long", message.ByteSizeLong());
    message.SerializeToCodedStream(&coded);
  }
  file.set_manifest_xxh64(digest_of(file.manifest()));
  return file.SerializeAsString();
}

Manifest decode_manifest(std::string_view bytes, const std::string& path) {
  const auto damaged = [&](const std::string& what) { return Error(fmt::format("{} is damaged: {}", path, what)); };
  if (bytes.size() > kMaxManifestBytes) throw damaged(fmt::format("{} bytes long", bytes.size()));
  pb::ManifestFile file;
  if (!parse(file, bytes) || !file.has_manifest() || !file.has_manifest_xxh64()) throw damaged("not a manifest");
  // Unknown fields and non-minimal encodings would be bytes that no digest covers.
  file.DiscardUnknownFields();
  if (file.SerializeAsString() != bytes) throw damaged("bytes that belong to nothing");
  if (file.manifest_xxh64() != digest_of(file.manifest())) throw damaged("the digest does not match");
  pb::Manifest message;
  if (!parse(message, file.manifest())) throw damaged("the manifest cannot be parsed");
  if (message.format_version() > kFormatVersion)
    throw ConfigError(fmt::format("{} has format version {}, newer than {}, the newest that this program reads", path,
                                  message.format_version(), kFormatVersion));
  if (message.format_version() != kFormatVersion) throw damaged(fmt::format("format version {}", message.format_version()));
  if (!message.has_run()) throw damaged("it says nothing about the run");

  Manifest manifest;
  manifest.info = run_from_proto(message.run(), path);
  for (const pb::Shard& s : message.shards()) {
    if (!is_safe_file_name(s.file())) throw damaged(fmt::format("the file name {} is not allowed", printable(s.file())));
    if (!manifest.shards.empty() && manifest.shards.back().file >= s.file())
      throw damaged(fmt::format("the file {} is listed twice or out of order", printable(s.file())));
    if (s.bytes() < 0) throw damaged(fmt::format("the file {} has {} bytes", s.file(), s.bytes()));
    manifest.shards.push_back({s.file(), s.bytes(), s.xxh64()});
  }
  for (const pb::Tensor& t : message.tensors()) {
    if (!manifest.tensors.empty() && manifest.tensors.back().name >= t.name())
      throw damaged(fmt::format("the tensor {} is listed twice or out of order", printable(t.name())));
    manifest.tensors.push_back(tensor_from_proto(t, static_cast<int>(manifest.shards.size()), path));
  }
  return manifest;
}

std::string read_manifest_bytes(FileSystem& files, const std::string& step_path) {
  const File file = files.open_file(step_path, kManifestName);
  const uint64_t size = file.size_bytes();
  if (size > kMaxManifestBytes) throw Error(fmt::format("{} is damaged: {} bytes long", file.path(), size));
  std::string bytes(size, '\0');
  file.read_at(0, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace rz::optim::checkpoint
