// Images: loaders against good and damaged files, batches against their definition.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>
#include <unistd.h>
#include <zlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "models/data/image_batch.h"
#include "models/data/load_images.h"
#include "runtime/core/error.h"

namespace rz::models {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ImageData : public ::testing::Test {
 protected:
  ImageData() {
    folder_ = fs::temp_directory_path() / fmt::format("rz_images_{}_{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ImageData() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  void write(const std::string& name, const std::string& bytes) const { std::ofstream(path(name), std::ios::binary) << bytes; }
  void write_gzip(const std::string& name, const std::string& bytes) const {
    gzFile file = gzopen(path(name).c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
  }
  std::string read(const std::string& name) const {
    std::ifstream in(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  static std::string idx(const std::vector<uint32_t>& shape, const std::string& body) {
    std::string out = {0, 0, 8, static_cast<char>(shape.size())};
    for (const uint32_t n : shape)
      for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(n >> shift & 255);
    return out + body;
  }
  // Pixel p of image i is 10 i + p; labels 0, 1, 2, ...
  static std::string pixels(int images, int values) {
    std::string out;
    for (int i = 0; i < images; ++i)
      for (int p = 0; p < values; ++p) out += static_cast<char>(10 * i + p);
    return out;
  }
  static std::string labels(int images) {
    std::string out;
    for (int i = 0; i < images; ++i) out += static_cast<char>(i);
    return out;
  }
  void write_fashion() const {
    write_gzip("train-images-idx3-ubyte.gz", idx({5, 2, 3}, pixels(5, 6)));
    write_gzip("train-labels-idx1-ubyte.gz", idx({5}, labels(5)));
    write_gzip("t10k-images-idx3-ubyte.gz", idx({2, 2, 3}, pixels(2, 6)));
    write_gzip("t10k-labels-idx1-ubyte.gz", idx({2}, labels(2)));
  }
  std::string fashion_error() const {
    try {
      load_fashion_mnist(folder_.string());
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "accepted";
  }

  void write_png(const std::string& name, int height, int width, uint8_t value, bool color = false) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width), image.height = static_cast<png_uint_32>(height);
    image.format = color ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
    const std::vector<uint8_t> bytes(PNG_IMAGE_SIZE(image), value);
    ASSERT_NE(png_image_write_to_file(&image, path(name).c_str(), 0, bytes.data(), 0, nullptr), 0);
  }

  static std::string npy(const std::string& type, const std::string& shape, const std::string& body) {
    std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.resize((header.size() + 10 + 64) / 64 * 64 - 10, ' ');
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size() & 255) + static_cast<char>(header.size() >> 8) + header + body;
  }

  fs::path folder_;
};

TEST_F(ImageData, IdxIsReadAsWritten) {
  write_fashion();
  const ImageDataset data = load_fashion_mnist(folder_.string());
  EXPECT_EQ(data.size(), (ImageSize{2, 3, 1}));
  EXPECT_EQ(data.classes(), 10);
  const ImageList& train = data.images(Split::train);
  ASSERT_EQ(train.count(), 5);
  EXPECT_EQ(train.pixels()[3 * 6 + 4], 34);
  EXPECT_EQ(train.labels()[3], 3);
  EXPECT_EQ(data.images(Split::validation).count(), 2);
  // Against the definition, in double.
  double sum = 0, squares = 0;
  for (const uint8_t v : train.pixels()) sum += v / 127.5 - 1, squares += (v / 127.5 - 1) * (v / 127.5 - 1);
  EXPECT_NEAR(data.statistics().mean, sum / 30, 1e-12);
  EXPECT_NEAR(data.statistics().std, std::sqrt(squares / 30 - sum * sum / 900), 1e-12);
  // A ring of one pixel of -1 makes 20 values of 6.
  const double padded_mean = (sum - 14 * 5) / 100;
  EXPECT_NEAR(data.statistics(1).mean, padded_mean, 1e-12);
}

TEST_F(ImageData, TheDigestSeesPixelsAndLabels) {
  write_fashion();
  const uint64_t before = load_fashion_mnist(folder_.string()).digest();
  EXPECT_EQ(load_fashion_mnist(folder_.string()).digest(), before);
  std::string changed = labels(5);
  changed[4] = 7;
  write_gzip("train-labels-idx1-ubyte.gz", idx({5}, changed));
  EXPECT_NE(load_fashion_mnist(folder_.string()).digest(), before);
}

TEST_F(ImageData, DamagedIdxFilesAreNamed) {
  const std::string images = "train-images-idx3-ubyte.gz", names = "train-labels-idx1-ubyte.gz";
  write_fashion();
  EXPECT_EQ(fashion_error(), "accepted");
  const auto expect = [&](const std::string& file, const std::string& what) {
    const std::string error = fashion_error();
    EXPECT_THAT(error, HasSubstr(file));
    EXPECT_THAT(error, HasSubstr(what));
    write_fashion();
  };
  fs::remove(path(images));
  expect(images, "dataset-fashion-mnist");
  write(images, "no gzip at all");
  expect(images, "corrupt gzip");
  const std::string good = read(images);
  write(images, good.substr(0, good.size() / 2));
  expect(images, "corrupt gzip");
  std::string flipped = good;
  flipped[good.size() - 6] = static_cast<char>(flipped[good.size() - 6] ^ 1);  // in the checksum
  write(images, flipped);
  expect(images, "corrupt gzip");
  write(images, good + "x");
  expect(images, "bytes follow its end");
  write_gzip(images, idx({20}, labels(20)));
  expect(images, "magic");
  write_gzip(images, "abc");
  expect(images, "header");
  write_gzip(images, idx({6, 2, 3}, pixels(5, 6)));
  expect(images, "truncated");
  write_gzip(images, idx({0xffffffffU, 0xffffffffU, 0xffffffffU}, pixels(5, 6)));
  expect(images, "truncated");
  write_gzip(images, idx({4, 2, 3}, pixels(5, 6)));
  expect(images, "promises 24 bytes, 30 follow");
  write_gzip(images, idx({5, 0, 3}, "123456"));
  expect(images, "dimension 1 is 0");
  write_gzip(names, idx({4}, labels(4)));
  expect(names, "5 images");
  std::string wrong = labels(5);
  wrong[2] = 10;
  write_gzip(names, idx({5}, wrong));
  expect(folder_.string(), "label 10 of training image 2 is not below the 10 classes");
  write_gzip("t10k-images-idx3-ubyte.gz", idx({2, 3, 2}, pixels(2, 6)));
  expect(folder_.string(), "training images are 2 x 3 x 1, validation images 3 x 2 x 1");
}

TEST_F(ImageData, BatchesFollowTheKeyAlone) {
  write_fashion();
  const ImageDataset data = load_fashion_mnist(folder_.string());
  const ImageOptions options{.flip = true, .padding = 1};
  const ImageBatch all = make_train_images(data, options, 3, 9, 0, 40);
  EXPECT_EQ(all.images.shape(), (Shape{40, 4, 5, 1}));
  const auto whole = all.images.to_vector<float>();
  const auto whole_labels = all.labels.to_vector<int32_t>();
  // Any cut of the batch gives the same samples.
  for (const int64_t first : {0, 7, 39}) {
    const ImageBatch part = make_train_images(data, options, 3, 9, first, 40 - first);
    const auto values = part.images.to_vector<float>();
    EXPECT_TRUE(std::equal(values.begin(), values.end(), whole.begin() + first * 20)) << first;
    EXPECT_EQ(part.labels.to_vector<int32_t>()[0], whole_labels[static_cast<size_t>(first)]);
  }
  EXPECT_NE(make_train_images(data, options, 3, 10, 0, 40).images.to_vector<float>(), whole);
  EXPECT_NE(make_train_images(data, options, 4, 9, 0, 40).images.to_vector<float>(), whole);
  // Each is an image of the set, with its label and a frame of -1, some of them mirrored.
  int mirrored = 0;
  for (int64_t b = 0; b < 40; ++b) {
    const int label = whole_labels[static_cast<size_t>(b)];
    const float* image = whole.data() + b * 20;
    const auto value = [&](int p) { return static_cast<float>(10 * label + p) / 127.5F - 1.0F; };
    const bool flipped = image[6] != value(0);
    mirrored += flipped;
    for (int h = 0; h < 4; ++h)
      for (int w = 0; w < 5; ++w) {
        const bool frame = h == 0 || h == 3 || w == 0 || w == 4;
        EXPECT_EQ(image[h * 5 + w], frame ? -1.0F : value((h - 1) * 3 + (flipped ? 3 - w : w - 1)));
      }
  }
  EXPECT_GT(mirrored, 5);
  EXPECT_LT(mirrored, 35);
  const ImageBatch ordered = make_image_batch(data, {.flip = true}, Split::train, 1, 3);
  EXPECT_EQ(ordered.labels.to_vector<int32_t>(), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(ordered.images.to_vector<float>()[0], 10.0F / 127.5F - 1.0F);
  EXPECT_THROW(make_image_batch(data, {}, Split::train, 3, 3), Error);
}

TEST_F(ImageData, PngFolders) {
  for (int i = 0; i < 4; ++i) {
    write_png(fmt::format("set/cat/{}.png", i), 4, 6, static_cast<uint8_t>(i), true);
    write_png(fmt::format("set/dog/{}.png", i), 4, 6, static_cast<uint8_t>(100 + i), true);
  }
  const ImageDataset data = load_png_folder(path("set"), 0.25);
  EXPECT_EQ(data.class_names(), (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(data.size(), (ImageSize{4, 6, 3}));
  EXPECT_EQ(data.images(Split::train).count(), 6);
  EXPECT_EQ(data.images(Split::validation).count(), 2);
  EXPECT_EQ(data.images(Split::validation).pixels()[4 * 6 * 3], 103);
  EXPECT_EQ(data.images(Split::validation).labels()[1], 1);

  const auto error_of = [&](const std::string& folder) {
    try {
      load_png_folder(folder, 0.25);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  write_png("set/dog/9.png", 5, 6, 1, true);
  EXPECT_THAT(error_of(path("set")), ::testing::AllOf(HasSubstr("9.png"), HasSubstr("5 x 6 x 3"), HasSubstr("4 x 6 x 3")));
  write("set/dog/9.png", "no png");
  EXPECT_THAT(error_of(path("set")), ::testing::AllOf(HasSubstr("9.png"), HasSubstr("PNG")));
  fs::create_directories(path("empty"));
  EXPECT_THAT(error_of(path("empty")), HasSubstr("there is no PNG file"));
  EXPECT_THAT(error_of(path("missing")), HasSubstr("missing"));
}

TEST_F(ImageData, NumpyArrays) {
  write("x.npy", npy("|u1", "4, 2, 3", pixels(4, 6)));
  write("y.npy", npy("<i2", "4,", std::string("\0\0\1\0\2\0\1\0", 8)));
  const ImageDataset data = load_npy(path("x.npy"), path("y.npy"), 0.25);
  EXPECT_EQ(data.size(), (ImageSize{2, 3, 1}));
  EXPECT_EQ(data.classes(), 3);
  EXPECT_EQ(data.images(Split::train).count(), 3);
  EXPECT_EQ(data.images(Split::validation).pixels()[1], 31);
  EXPECT_EQ(load_npy(path("x.npy"), "", 0.25).classes(), 1);

  const auto error_of = [&](const std::string& x, const std::string& y = "") {
    write("a.npy", x);
    if (!y.empty()) write("b.npy", y);
    try {
      load_npy(path("a.npy"), y.empty() ? "" : path("b.npy"), 0.25);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::string good = npy("|u1", "4, 2, 3", pixels(4, 6));
  EXPECT_EQ(error_of(good), "accepted");
  EXPECT_THAT(error_of("not an array"), HasSubstr("not a .npy file"));
  EXPECT_THAT(error_of(good.substr(0, good.size() - 1)), HasSubstr("truncated"));
  EXPECT_THAT(error_of(good + "x"), HasSubstr("promises 24 bytes, 25 follow"));
  EXPECT_THAT(error_of(npy("<f4", "4, 2, 3", pixels(4, 24))), HasSubstr("uint8"));
  EXPECT_THAT(error_of(npy("|u1", "24", pixels(4, 6))), HasSubstr("dimensions"));
  EXPECT_THAT(error_of(good, npy("|u1", "3", labels(3))), HasSubstr("labels for 4 images"));
  EXPECT_THAT(error_of(good, npy("|i1", "4", std::string("\1\2\xff\0", 4))), HasSubstr("label -1 of image 2 is not in [0, 256)"));
}

}  // namespace
}  // namespace rz::models
