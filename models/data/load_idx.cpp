// IDX files (Fashion-MNIST): big-endian magic 0x0000 08 dd, dd dimensions as uint32, then bytes. Gzip's own checksum is verified.
#include <zlib.h>

#include <array>
#include <cstring>

#include "models/data/file.h"
#include "models/data/load_images.h"
#include "runtime/core/error.h"

namespace rz::models {

namespace {

constexpr int64_t kMostBytes = int64_t{1} << 32;
constexpr uint32_t kUnsignedBytes = 0x800;  // type 08, dimensions in the low byte

struct Idx {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> shape;
  int64_t body = 0;  // offset of the data
};

uint32_t big_endian(const uint8_t* p) { return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]}; }

Idx read_idx(const std::string& path, int dimensions) {
  Idx idx{read_gzip(path, kMostBytes), {}, 4 + 4 * dimensions};
  const auto size = static_cast<int64_t>(idx.bytes.size());
  RZ_CONFIG_CHECK(size >= idx.body, "{}: {} bytes, but the IDX header alone has {}", path, size, idx.body);
  const uint32_t magic = big_endian(idx.bytes.data());
  RZ_CONFIG_CHECK(magic == (kUnsignedBytes | static_cast<uint32_t>(dimensions)), "{}: not an IDX file of bytes in {} dimensions: magic {:#x}, expected {:#x}",
                  path, dimensions, magic, kUnsignedBytes | static_cast<uint32_t>(dimensions));
  int64_t left = size - idx.body;  // of the product of the dimensions; each is checked before it is multiplied
  int64_t product = 1;
  for (int d = 0; d < dimensions; ++d) {
    const int64_t n = big_endian(idx.bytes.data() + 4 + 4 * d);
    RZ_CONFIG_CHECK(n >= 1, "{}: dimension {} is {}", path, d, n);
    RZ_CONFIG_CHECK(n <= left / product, "{}: truncated: the header promises more than the {} bytes that follow", path, left);
    product *= n;
    idx.shape.push_back(n);
  }
  RZ_CONFIG_CHECK(product == left, "{}: the header promises {} bytes, {} follow", path, product, left);
  return idx;
}

ImageList load_part(const std::string& folder, const std::string& part) {
  const std::string images_path = folder + "/" + part + "-images-idx3-ubyte.gz", labels_path = folder + "/" + part + "-labels-idx1-ubyte.gz";
  const Idx images = read_idx(images_path, 3);
  const Idx labels = read_idx(labels_path, 1);
  RZ_CONFIG_CHECK(images.shape[0] == labels.shape[0], "{} holds {} images, {} {} labels", images_path, images.shape[0], labels_path, labels.shape[0]);
  ImageList list({images.shape[1], images.shape[2], 1}, images.shape[0], images_path);
  std::memcpy(list.pixels().data(), images.bytes.data() + images.body, list.pixels().size());
  std::memcpy(list.labels().data(), labels.bytes.data() + labels.body, list.labels().size());
  return list;
}

}  // namespace

std::vector<uint8_t> read_gzip(const std::string& path, int64_t most_bytes) {
  const InputFile file(path);
  z_stream stream{};
  RZ_CHECK(inflateInit2(&stream, 16 + MAX_WBITS) == Z_OK, "zlib cannot be started");
  const auto end = [](z_stream* s) { inflateEnd(s); };
  const std::unique_ptr<z_stream, decltype(end)> ends(&stream, end);
  std::vector<uint8_t> out;
  std::array<std::byte, 1 << 16> in;
  int64_t read = 0;
  for (int state = Z_OK; state != Z_STREAM_END;) {
    if (stream.avail_in == 0) {
      const auto count = std::min<int64_t>(static_cast<int64_t>(in.size()), file.size_bytes() - read);
      RZ_CONFIG_CHECK(count > 0, "{}: corrupt gzip: the file ends inside its data, after {} bytes", path, file.size_bytes());
      file.read_at(read, std::span(in).first(static_cast<size_t>(count)));
      read += count;
      stream.next_in = reinterpret_cast<Bytef*>(in.data());
      stream.avail_in = static_cast<uInt>(count);
    }
    std::array<uint8_t, 1 << 16> block;
    stream.next_out = block.data();
    stream.avail_out = static_cast<uInt>(block.size());
    state = inflate(&stream, Z_NO_FLUSH);
    RZ_CONFIG_CHECK(state == Z_OK || state == Z_STREAM_END || state == Z_BUF_ERROR, "{}: corrupt gzip: {}", path,
                    stream.msg != nullptr ? stream.msg : "its data cannot be decompressed");
    out.insert(out.end(), block.begin(), block.end() - stream.avail_out);
    RZ_CONFIG_CHECK(static_cast<int64_t>(out.size()) <= most_bytes, "{}: holds more than {} bytes", path, most_bytes);
  }
  RZ_CONFIG_CHECK(stream.avail_in == 0 && read == file.size_bytes(), "{}: corrupt gzip: bytes follow its end", path);
  return out;
}

const std::vector<std::string>& fashion_class_names() {
  static const std::vector<std::string> names = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                                 "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
  return names;
}

ImageDataset load_fashion_mnist(const std::string& folder) {
  try {
    return {load_part(folder, "train"), load_part(folder, "t10k"), fashion_class_names(), folder};
  } catch (const ConfigError& e) {
    const std::string what = e.what();
    if (what.find("cannot be opened") == std::string::npos) throw;
    throw ConfigError(what + "; Fashion-MNIST is in the package dataset-fashion-mnist (tools/install_dependencies.sh)");
  }
}

}  // namespace rz::models
