// The safetensors format: u64 little-endian header length | JSON header, padded with spaces | tensor bytes, row-major.
// The header maps a name to {"dtype", "shape", "data_offsets": [begin, end)}, offsets counted from the end of the header;
// "__metadata__" maps strings to strings (https://github.com/huggingface/safetensors, the section "Format").
//
// The reader is for files from anywhere: it refuses what the format does not allow (duplicate names, overlaps, holes,
// trailing bytes, lengths that do not match shapes) before a byte of data is used, always by an Error naming the file.
// Does not read or write tensor data: callers use File with the offsets given here. No state; thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "optim/checkpoint/file_system.h"
#include "runtime/core/dtype.h"
#include "runtime/core/shape.h"

namespace rz::optim::checkpoint::safetensors {

// Longest header, as in the reference implementation.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0;  // bytes, from the start of the data
  uint64_t end = 0;
};

struct Header {
  std::vector<Entry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // where the data start in the file
  uint64_t data_bytes = 0;

  // Null when there is none. O(number of entries).
  const Entry* find(std::string_view name) const;
};

// Orders the entries (widest type first, then by name, so that every tensor is aligned to its type), fills their offsets
// and the sizes of `header`, and returns the bytes with which the file starts; data begins at a multiple of 64.
// Throws Error on a duplicate or reserved name, and when the header would be too long for a reader.
std::string make_header(Header& header);

// Parses the first `header_bytes` of a file's JSON; `file_bytes` is the size of the whole file, `what` names it in errors.
Header parse_header(std::string_view json, uint64_t file_bytes, const std::string& what);

// Reads and checks the header of `file`.
Header read_header(const File& file);

}  // namespace rz::optim::checkpoint::safetensors
