// The manifest: which tensors a checkpoint holds, in which ranges of which shards, with their digests. Plain structs, their
// protobuf encoding, and every rule that a manifest must satisfy, checked when decoding since files come from anywhere.
// Does not open shards. No state; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "optim/checkpoint/checkpoint.h"
#include "optim/checkpoint/file_system.h"

namespace rz::optim::checkpoint {

inline constexpr const char* kManifestName = "manifest.pb";
inline constexpr int64_t kFormatVersion = 1;
inline constexpr uint64_t kMaxManifestBytes = uint64_t{512} << 20;

// Elements [begin, end) of a flattened tensor, in a shard.
struct StoredRange {
  int shard = 0;
  int64_t begin = 0;
  int64_t end = 0;
  uint64_t digest = 0;
};

struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<StoredRange> ranges;  // ascending, covering [0, numel) exactly once; none for an empty tensor
};

struct StoredShard {
  std::string file;
  int64_t bytes = 0;
  uint64_t digest = 0;
};

struct Manifest {
  CheckpointInfo info;
  std::vector<StoredTensor> tensors;  // by name, ascending
  std::vector<StoredShard> shards;    // by file, ascending
};

// The name of the entry that holds a range of a tensor in a shard.
std::string entry_name(const std::string& tensor, const Shape& shape, int64_t begin, int64_t end);

// "shard-00001-of-00004.safetensors".
std::string shard_name(int rank, int size);

// Sorts the ranges and throws Error unless they cover [0, tensor.shape.numel()) exactly once; `what` names the source.
void check_coverage(StoredTensor& tensor, const std::string& what);

// The bytes of manifest.pb.
std::string encode_manifest(const Manifest& manifest);

// The inverse; `path` (of manifest.pb) names it in errors. Error: damaged or inconsistent. ConfigError: of a newer format.
Manifest decode_manifest(std::string_view bytes, const std::string& path);

// The bytes of the manifest in a step's folder.
std::string read_manifest_bytes(FileSystem& files, const std::string& step_path);

}  // namespace rz::optim::checkpoint
