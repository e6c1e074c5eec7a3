// Only what an array of images, noise or labels needs is understood; anything else is refused.
#include "models/data/npy.h"

#include <array>
#include <cstring>
#include <regex>

#include "runtime/core/error.h"

namespace rz::models {

namespace {
constexpr int64_t kMostHeaderBytes = 1 << 16;
}

NpyHeader read_npy_header(const InputFile& file) {
  const std::string& path = file.path();
  std::array<unsigned char, 12> start{};
  RZ_CONFIG_CHECK(file.size_bytes() >= 12, "{}: {} bytes are no .npy file", path, file.size_bytes());
  file.read_at(0, std::as_writable_bytes(std::span(start)));
  RZ_CONFIG_CHECK(std::memcmp(start.data(), "\x93NUMPY", 6) == 0, "{}: not a .npy file", path);
  RZ_CONFIG_CHECK(start[6] >= 1 && start[6] <= 3, "{}: .npy version {}; valid: 1, 2, 3", path, start[6]);
  const bool wide = start[6] > 1;
  const int64_t length = wide ? start[8] | start[9] << 8 | start[10] << 16 | int64_t{start[11]} << 24 : start[8] | start[9] << 8;
  const int64_t begin = wide ? 12 : 10;
  RZ_CONFIG_CHECK(length <= kMostHeaderBytes && begin + length <= file.size_bytes(), "{}: its header claims {} bytes", path, length);
  std::string text(static_cast<size_t>(length), ' ');
  file.read_at(begin, std::as_writable_bytes(std::span(text)));
  NpyHeader header;
  header.body = begin + length;
  std::smatch match;
  static const std::regex kType("'descr'\\s*:\\s*'([^']{1,16})'"), kOrder("'fortran_order'\\s*:\\s*False"), kShape("'shape'\\s*:\\s*\\(([0-9, ]*)\\)");
  RZ_CONFIG_CHECK(std::regex_search(text, match, kType), "{}: its header names no element type", path);
  header.type = match[1];
  RZ_CONFIG_CHECK(std::regex_search(text, kOrder), "{}: stored in Fortran's order; save it with order C", path);
  RZ_CONFIG_CHECK(std::regex_search(text, match, kShape), "{}: its header names no shape", path);
  static const std::regex kNumber("[0-9]+");
  const std::string numbers = match[1];
  for (std::sregex_iterator i(numbers.begin(), numbers.end(), kNumber), end; i != end; ++i) {
    RZ_CONFIG_CHECK(i->length() <= 12 && header.shape.size() < 8, "{}: its shape is ({})", path, numbers);
    header.shape.push_back(std::stoll(i->str()));
  }
  return header;
}

int64_t check_npy_body(const InputFile& file, const NpyHeader& header, int64_t element_bytes) {
  int64_t left = file.size_bytes() - header.body, count = 1;
  for (const int64_t n : header.shape) {
    RZ_CONFIG_CHECK(n >= 1 && n <= left / count, "{}: truncated: its header promises more than the {} bytes that follow", file.path(), left);
    count *= n;
  }
  RZ_CONFIG_CHECK(count * element_bytes == left, "{}: its header promises {} bytes, {} follow", file.path(), count * element_bytes, left);
  return count;
}

std::vector<uint8_t> read_npy_body(const InputFile& file, const NpyHeader& header, int64_t element_bytes) {
  std::vector<uint8_t> bytes(static_cast<size_t>(check_npy_body(file, header, element_bytes) * element_bytes));
  file.read_at(header.body, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

std::vector<int64_t> read_npy_labels(const std::string& path, int64_t count, std::string_view things) {
  const InputFile file(path);
  const NpyHeader header = read_npy_header(file);
  static const std::regex kInteger("[|<][iu][1248]");
  RZ_CONFIG_CHECK(std::regex_match(header.type, kInteger), "{}: elements of type {}; valid: integers, little-endian", path, header.type);
  RZ_CONFIG_CHECK(header.shape.size() == 1 && header.shape[0] == count, "{}: labels for {} {} must be [{}]", path, count, things, count);
  const int64_t bytes = header.type[2] - '0';
  const auto body = read_npy_body(file, header, bytes);
  std::vector<int64_t> labels(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    uint64_t value = 0;
    for (int64_t k = bytes; k-- > 0;) value = value << 8 | body[static_cast<size_t>(i * bytes + k)];
    const int64_t unused = 64 - 8 * bytes;
    labels[static_cast<size_t>(i)] = header.type[1] == 'i' ? static_cast<int64_t>(value << unused) >> unused : static_cast<int64_t>(value);
  }
  return labels;
}

std::string npy_header(std::string_view type, std::span<const int64_t> shape) {
  std::string text = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", type, fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  // Data begins at a multiple of 64 bytes; the header's last byte is a line end.
  text.resize((text.size() + 1 + 10 + 63) / 64 * 64 - 10, ' ');
  text.back() = '\n';
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(text.size() & 0xFF) + static_cast<char>(text.size() >> 8) + text;
}

}  // namespace rz::models
