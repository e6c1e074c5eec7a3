// NumPy's .npy format, versions 1 to 3: magic, version, header length, a Python dict as text, then the data.
//
// Files are not trusted: every problem is a ConfigError of one line naming file and value. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/data/file.h"

namespace rz::models {

struct NpyHeader {
  std::string type;  // such as "|u1", "<i8", "<f4"
  std::vector<int64_t> shape;
  int64_t body = 0;  // where the data begins
};

// In C's order, of at most 8 dimensions.
NpyHeader read_npy_header(const InputFile& file);
// The number of elements, of `element_bytes` each, which must be all that follows the header.
int64_t check_npy_body(const InputFile& file, const NpyHeader& header, int64_t element_bytes);
// The data, checked.
std::vector<uint8_t> read_npy_body(const InputFile& file, const NpyHeader& header, int64_t element_bytes);
// N integers of any size as numbers. `things`: what they label, in errors.
std::vector<int64_t> read_npy_labels(const std::string& path, int64_t count, std::string_view things);

// What stands before the data of such an array: version 1, C's order.
std::string npy_header(std::string_view type, std::span<const int64_t> shape);

}  // namespace rz::models
