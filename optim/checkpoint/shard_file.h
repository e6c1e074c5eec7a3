// One rank's file: writing its slices, verifying it against the manifest, and reading extents of it.
//
// Each does its work in portions: step(budget) handles about `budget` bytes and says whether it is done, so that ranks can
// agree in between and a wait is never longer than a portion takes. Data are written from and read into the caller's
// memory; only verification reads through a buffer. Local: nothing here communicates. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "optim/checkpoint/checkpoint.h"
#include "optim/checkpoint/digest.h"
#include "optim/checkpoint/manifest.h"
#include "optim/checkpoint/safetensors.h"
#include "runtime/core/storage.h"

namespace rz::optim::checkpoint {

// Writes the non-empty ones of `slices` (which must outlive it) to a new file.
class ShardWriter {
 public:
  ShardWriter(FileSystem& files, const std::string& directory, const std::string& name, std::span<const SliceToSave> slices);

  uint64_t data_bytes() const { return header_.data_bytes; }
  // Writes about `budget` bytes more and syncs; closes the file after the last. True when done.
  bool step(uint64_t budget);

  // After the last step: the file, and a digest per slice as given (0 for an empty one).
  const StoredShard& stored() const { return stored_; }
  const std::vector<uint64_t>& slice_digests() const { return slice_digests_; }

 private:
  void append(const void* data, size_t bytes);

  std::span<const SliceToSave> slices_;
  safetensors::Header header_;
  std::vector<size_t> order_;  // indices of slices in the order of their data
  File file_;
  StoredShard stored_;
  std::vector<uint64_t> slice_digests_;
  Digest file_digest_;
  Digest slice_digest_;
  size_t next_ = 0;       // into order_
  uint64_t written_ = 0;  // bytes of the current slice
  bool done_ = false;
};

// The place of a range in its tensor: manifest.tensors[tensor].ranges[range].
struct RangeRef {
  size_t tensor = 0;
  size_t range = 0;
};

// For each shard, the ranges that lie in it.
std::vector<std::vector<RangeRef>> ranges_by_shard(const Manifest& manifest);

// An open shard whose size, header and entries are what the manifest says: exactly its ranges, with their types and lengths.
class OpenShard {
 public:
  OpenShard(FileSystem& files, const std::string& step_path, const Manifest& manifest, int shard, std::span<const RangeRef> ranges);

  const File& file() const { return file_; }
  const safetensors::Header& header() const { return header_; }
  // Where the range starts in the file.
  uint64_t offset_of(const StoredTensor& tensor, const StoredRange& range) const;
  // The range of an entry of header().
  const RangeRef& range_of(const safetensors::Entry& entry) const { return ranges_.at(entry.name); }

 private:
  File file_;
  safetensors::Header header_;
  std::unordered_map<std::string, RangeRef> ranges_;
  std::unordered_map<std::string_view, const safetensors::Entry*> entries_;
};

// Reads the given shards whole and compares every digest; an Error names the file and the tensor.
class ShardVerifier {
 public:
  ShardVerifier(FileSystem& files, std::string step_path, const Manifest& manifest, std::vector<int> shards);
  ~ShardVerifier();

  uint64_t total_bytes() const;
  bool step(uint64_t budget);

 private:
  void open_next();
  void add(const std::byte* data, size_t bytes);
  void check_entry(const safetensors::Entry& entry) const;

  FileSystem& files_;
  std::string step_path_;
  const Manifest& manifest_;
  std::vector<int> shards_;
  std::vector<std::vector<RangeRef>> ranges_;
  std::shared_ptr<Storage> buffer_;
  size_t next_ = 0;  // into shards_
  std::unique_ptr<OpenShard> open_;
  uint64_t at_ = 0;   // bytes of the open shard read so far
  size_t entry_ = 0;  // of the open shard
  Digest file_digest_;
  Digest entry_digest_;
};

// Fills slices from a verified checkpoint, reading only the extents that they need.
class SliceReader {
 public:
  SliceReader(FileSystem& files, std::string step_path, const Manifest& manifest, std::span<const SliceToLoad> slices);

  uint64_t total_bytes() const { return total_bytes_; }
  bool step(uint64_t budget);

 private:
  struct Extent {
    int shard = 0;
    RangeRef range;
    uint64_t skip = 0;  // bytes of the range before it
    uint64_t bytes = 0;
    std::byte* to = nullptr;
  };

  FileSystem& files_;
  std::string step_path_;
  const Manifest& manifest_;
  std::vector<std::vector<RangeRef>> ranges_;
  std::vector<Extent> extents_;  // by shard
  uint64_t total_bytes_ = 0;
  size_t next_ = 0;    // into extents_
  uint64_t read_ = 0;  // bytes of the current extent
  int open_shard_ = -1;
  std::unique_ptr<OpenShard> open_;
};

// Throws Error if the folder has safetensors files of which the manifest knows nothing.
void check_no_extra_shards(FileSystem& files, const std::string& step_path, const Manifest& manifest);

}  // namespace rz::optim::checkpoint
