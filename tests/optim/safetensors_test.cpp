// The safetensors reader and writer: the format's own rules, one row per way to break them, and seeded noise.
#include "optim/checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "tests/support/faulty_file_system.h"

namespace rz::optim::checkpoint::safetensors {
namespace {

using ::testing::HasSubstr;

std::string with_length(const std::string& json, const std::string& data) {
  const uint64_t length = json.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + json + data;
}

// The header of a file with these bytes; throws what read_header throws.
Header read(const std::string& bytes) {
  test::FaultyFileSystem files;
  files.create_directory("/d");
  files.put("/d/f", bytes);
  return read_header(files.open_file("/d", "f"));
}

std::string error_of(const std::string& bytes) {
  try {
    read(bytes);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(Safetensors, ReadsWhatItWrites) {
  Header header;
  header.metadata = {{"format", "pt"}, {"quote", "\"\\\n"}};
  for (const DType t : {DType::u8, DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64})
    header.entries.push_back({fmt::format("tensor {}", name(t)), t, {3, 1, 5}, 0, 0});
  header.entries.push_back({"scalar", DType::f64, {}, 0, 0});
  header.entries.push_back({"empty", DType::f32, {2, 0}, 0, 0});
  header.entries.push_back({"\xc3\xa9 \"quoted\" \\ [0:3]", DType::f32, {2}, 0, 0});
  const std::string start = make_header(header);
  EXPECT_EQ(start.size() % 64, 0u);
  EXPECT_EQ(header.data_offset, start.size());
  const Header back = read(start + std::string(header.data_bytes, 'x'));
  EXPECT_EQ(back.data_offset, header.data_offset);
  EXPECT_EQ(back.data_bytes, header.data_bytes);
  EXPECT_EQ(back.metadata, header.metadata);
  ASSERT_EQ(back.entries.size(), header.entries.size());
  for (const Entry& e : header.entries) {
    const Entry* found = back.find(e.name);
    ASSERT_NE(found, nullptr) << e.name;
    EXPECT_EQ(found->dtype, e.dtype);
    EXPECT_EQ(found->shape, e.shape);
    EXPECT_EQ(found->begin, e.begin);
    EXPECT_EQ(found->end, e.end);
    EXPECT_EQ((back.data_offset + found->begin) % size_bytes(e.dtype), 0u) << e.name << " is not aligned to its type";
  }
  EXPECT_EQ(back.find("tensor"), nullptr);
}

TEST(Safetensors, FilesOfOtherWriters) {
  // Fields and tensors in any order, whitespace, no metadata, unpadded.
  const Header h = read(with_length(R"({ "b" : {"shape":[2], "data_offsets":[4,6], "dtype":"U8"},
                                        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]} })",
                                    "123456"));
  ASSERT_EQ(h.entries.size(), 2u);
  EXPECT_EQ(h.entries[0].name, "a");
  EXPECT_EQ(h.entries[1].shape, (Shape{2}));
  EXPECT_TRUE(read(with_length("{}", "")).entries.empty());
  EXPECT_EQ(read(with_length(R"({"__metadata__":{"k":"v"}}  )", "")).metadata.at("k"), "v");
}

TEST(Safetensors, WriterRefusesNamesThatTheFormatCannotHold) {
  const auto error = [](std::vector<Entry> entries) {
    Header header;
    header.entries = std::move(entries);
    try {
      make_header(header);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_THAT(error({{"a", DType::f32, {1}, 0, 0}, {"a", DType::f64, {1}, 0, 0}}), HasSubstr("'a'"));
  EXPECT_THAT(error({{"__metadata__", DType::f32, {1}, 0, 0}}), HasSubstr("__metadata__"));
}

TEST(Safetensors, EveryRuleOfTheFormat) {
  const auto tensor = [](const std::string& fields) { return "{\"a\":{" + fields + "}}"; };
  struct Row {
    std::string json, data, expected;
  };
  const std::string good = R"("dtype":"U8","shape":[2],"data_offsets":[0,2])";
  ASSERT_EQ(error_of(with_length(tensor(good), "12")), "");
  const Row rows[] = {
      {tensor(good), "1", "need 2 bytes of data, but the file has 1"},
      {tensor(good), "123", "need 2 bytes of data, but the file has 3"},
      {"", "", "not a JSON object"},
      {"[]", "", "not a JSON object"},
      {" {}", "", "not a JSON object"},
      {"{} x", "", "not JSON at byte"},
      {"{", "", "not JSON"},
      {"{\"a\":1}", "", "the value of 'a' has the number 1"},
      {"{\"a\":[]}", "", "an array"},
      {"{\"a\":null}", "", "null"},
      {"{\"__metadata__\":{\"a\":1}}", "", "the metadata has the number 1"},
      {"{\"__metadata__\":{\"a\":{}}}", "", "the metadata has an object"},
      {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", "", "the metadata 'a' appears twice"},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", "", "the name '__metadata__' appears twice"},
      {"{\"a\":{" + good + "},\"a\":{" + good + "}}", "12", "the name 'a' appears twice"},
      {"{\"a\":{" + good + "},\"\\u0061\":{" + good + "}}", "12", "the name 'a' appears twice"},
      {tensor(good + R"(,"dtype":"U8")"), "12", "has dtype twice"},
      {tensor(good + R"(,"stride":[1])"), "12", "unknown field 'stride'"},
      {tensor(R"("dtype":"U8","shape":[2])"), "12", "'a' has no data_offsets"},
      {tensor(R"("dtype":"U8","data_offsets":[0,2])"), "12", "'a' has no shape"},
      {tensor(R"("shape":[2],"data_offsets":[0,2])"), "12", "'a' has no dtype"},
      {tensor(R"("dtype":"C64","shape":[2],"data_offsets":[0,2])"), "12", "unknown dtype 'C64'"},
      {tensor(R"("dtype":"u8","shape":[2],"data_offsets":[0,2])"), "12", "unknown dtype 'u8'"},
      {tensor(R"("dtype":1,"shape":[2],"data_offsets":[0,2])"), "12", "the number 1"},
      {tensor(R"("dtype":"U8","shape":[-2],"data_offsets":[0,2])"), "12", "the negative number -2"},
      {tensor(R"("dtype":"U8","shape":[2.0],"data_offsets":[0,2])"), "12", "the number '2.0'"},
      {tensor(R"("dtype":"U8","shape":["2"],"data_offsets":[0,2])"), "12", "the text '2'"},
      {tensor(R"("dtype":"U8","shape":[[2]],"data_offsets":[0,2])"), "12", "an array"},
      {tensor(R"("dtype":"U8","shape":2,"data_offsets":[0,2])"), "12", "the number 2"},
      {tensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,2])"), "12", "more than 8 extents"},
      {tensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,2])"), "12", "the extent 18446744073709551615"},
      {tensor(R"("dtype":"U8","shape":[184467440737095516160],"data_offsets":[0,2])"), "12", "the number"},
      {tensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])"), "", "element count overflows"},
      {tensor(R"("dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), "", "element count overflows"},
      {tensor(R"("dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0])"), "", "byte count overflows"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[2,0])"), "12", "data offsets [2, 0)"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[0,1])"), "12", "has 2 bytes by its shape"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[0])"), "12", "needs two data offsets"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[0,2,2])"), "12", "a third offset"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[1,3])"), "123", "begin at byte 1, not where the former end, at 0"},
      {tensor(R"("dtype":"U8","shape":[2],"data_offsets":[18446744073709551614,18446744073709551615])"), "12", "has 2 bytes by its shape"},
      {tensor(R"("dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615])"), "", "begin at byte"},
      {"{\"a\":{" + good + R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", "123",
       "begin at byte 1, not where the former end, at 2"},
      {"{\"a\":{" + good + R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})", "12345",
       "begin at byte 3, not where the former end, at 2"},
      {"{\"a\xff\":{" + good + "}}", "12", "not JSON"},
  };
  for (const Row& row : rows) {
    const std::string error = error_of(with_length(row.json, row.data));
    EXPECT_THAT(error, HasSubstr(row.expected)) << row.json;
    EXPECT_THAT(error, HasSubstr("/d/f")) << row.json;
  }
}

TEST(Safetensors, HeaderLengthIsBoundedByTheFile) {
  for (const uint64_t length : {uint64_t{3}, uint64_t{1000}, kMaxHeaderBytes + 1, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string bytes = with_length("{}", "");
    std::memcpy(bytes.data(), &length, sizeof(length));
    EXPECT_THAT(error_of(bytes), HasSubstr("its header would be")) << length;
  }
  for (size_t n = 0; n < 8; ++n) EXPECT_THAT(error_of(std::string(n, '\0')), HasSubstr("is not a safetensors file"));
}

// Depth is bounded by the places where a value may stand, not by the stack.
TEST(Safetensors, DeepNesting) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string json = "{\"a\":{\"dtype\":\"U8\",\"shape\":";
    for (int i = 0; i < 1'000'000; ++i) json += open;
    EXPECT_NE(error_of(with_length(json, "")), "");
  }
}

TEST(Safetensors, Noise) {
  Header header;
  header.metadata = {{"k", "v"}};
  header.entries = {{"a.weight", DType::f32, {2, 3}, 0, 0}, {"b", DType::u8, {5}, 0, 0}, {"c", DType::i64, {}, 0, 0}};
  const std::string start = make_header(header);
  const std::string whole = start + std::string(header.data_bytes, 'x');
  const std::string tokens[] = {"{",
                                "}",
                                "[",
                                "]",
                                "\"",
                                ",",
                                ":",
                                "-",
                                "9",
                                "0",
                                "1e9",
                                "null",
                                "\\u0000",
                                "\"a.weight\"",
                                "[0,",
                                "\"shape\"",
                                "18446744073709551616"};
  std::mt19937_64 random(7);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = whole;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % (i % 2 ? start.size() : 120);
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, 1 + random() % 5);
          break;
        case 2:
          bytes.insert(at, tokens[random() % std::size(tokens)]);
          break;
        default:
          bytes.replace(at, 1, tokens[random() % std::size(tokens)]);
      }
    }
    if (i % 3 != 0) {  // a length that fits, so that the JSON is reached
      const uint64_t length = bytes.size() - header.data_bytes - 8;
      std::memcpy(bytes.data(), &length, sizeof(length));
    }
    accepted += error_of(bytes).empty();
  }
  EXPECT_LT(accepted, 10'000);
}

}  // namespace
}  // namespace rz::optim::checkpoint::safetensors
