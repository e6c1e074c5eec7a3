// NumPy's .npy format, versions 1 to 3: magic, version, header length, a Python dict as text, then the data. Only what an array of
// images or labels needs is understood; anything else is refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <regex>

#include "models/data/file.h"
#include "models/data/load_images.h"
#include "runtime/core/error.h"

namespace rz::models {

namespace {

constexpr int64_t kMostHeaderBytes = 1 << 16;

struct Header {
  std::string type;  // such as "|u1", "<i8"
  std::vector<int64_t> shape;
  int64_t body = 0;
};

Header read_header(const InputFile& file) {
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
  Header header;
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

// The data of `count` elements of `element_bytes` each, which must be all that follows the header.
std::vector<uint8_t> read_body(const InputFile& file, const Header& header, int64_t element_bytes) {
  int64_t left = file.size_bytes() - header.body, count = 1;
  for (const int64_t n : header.shape) {
    RZ_CONFIG_CHECK(n >= 1 && n <= left / count, "{}: truncated: its header promises more than the {} bytes that follow", file.path(), left);
    count *= n;
  }
  RZ_CONFIG_CHECK(count * element_bytes == left, "{}: its header promises {} bytes, {} follow", file.path(), count * element_bytes, left);
  std::vector<uint8_t> bytes(static_cast<size_t>(left));
  file.read_at(header.body, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

std::vector<uint8_t> read_labels(const std::string& path, int64_t images) {
  const InputFile file(path);
  const Header header = read_header(file);
  static const std::regex kInteger("[|<][iu][1248]");
  RZ_CONFIG_CHECK(std::regex_match(header.type, kInteger), "{}: elements of type {}; valid: integers, little-endian", path, header.type);
  RZ_CONFIG_CHECK(header.shape.size() == 1 && header.shape[0] == images, "{}: labels for {} images must be [{}]", path, images, images);
  const int64_t bytes = header.type[2] - '0';
  const auto body = read_body(file, header, bytes);
  std::vector<uint8_t> labels(static_cast<size_t>(images));
  for (int64_t i = 0; i < images; ++i) {
    uint64_t value = 0;
    for (int64_t k = bytes; k-- > 0;) value = value << 8 | body[static_cast<size_t>(i * bytes + k)];
    const int64_t unused = 64 - 8 * bytes;
    const int64_t label = header.type[1] == 'i' ? static_cast<int64_t>(value << unused) >> unused : static_cast<int64_t>(value);
    RZ_CONFIG_CHECK(label >= 0 && label < 256, "{}: label {} of image {} is not in [0, 256)", path, label, i);
    labels[static_cast<size_t>(i)] = static_cast<uint8_t>(label);
  }
  return labels;
}

}  // namespace

ImageDataset load_npy(const std::string& images_path, const std::string& labels_path, double validation_fraction) {
  RZ_CONFIG_CHECK(validation_fraction > 0 && validation_fraction < 1, "validation fraction {} is not between 0 and 1", validation_fraction);
  const InputFile file(images_path);
  const Header header = read_header(file);
  RZ_CONFIG_CHECK(header.type == "|u1" || header.type == "<u1", "{}: elements of type {}; valid: uint8 levels", images_path, header.type);
  RZ_CONFIG_CHECK(header.shape.size() == 3 || header.shape.size() == 4, "{}: {} dimensions; valid: [images, height, width] or with channels behind",
                  images_path, header.shape.size());
  const auto pixels = read_body(file, header, 1);
  const int64_t count = header.shape[0];
  const ImageSize size{header.shape[1], header.shape[2], header.shape.size() == 4 ? header.shape[3] : 1};
  const auto labels = labels_path.empty() ? std::vector<uint8_t>(static_cast<size_t>(count), 0) : read_labels(labels_path, count);
  std::vector<std::string> names;
  for (int c = 0; c <= *std::max_element(labels.begin(), labels.end()); ++c) names.push_back(std::to_string(c));
  const auto held_out = std::llround(static_cast<double>(count) * validation_fraction);
  RZ_CONFIG_CHECK(held_out >= 1 && held_out < count, "{}: {} images are too few to hold out a fraction of {}", images_path, count, validation_fraction);
  const auto part = [&](int64_t begin, int64_t end) {
    ImageList list(size, end - begin, images_path);
    std::copy(pixels.begin() + begin * size.values(), pixels.begin() + end * size.values(), list.pixels().begin());
    std::copy(labels.begin() + begin, labels.begin() + end, list.labels().begin());
    return list;
  };
  return {part(0, count - held_out), part(count - held_out, count), names, images_path};
}

}  // namespace rz::models
