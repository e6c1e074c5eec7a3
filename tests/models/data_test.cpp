// Corpora and batches: loaders against good and damaged files, batches against their definition.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "models/data/batch.h"
#include "models/data/load.h"
#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "runtime/core/rank_context.h"
#include "tests/support/config_error.h"

namespace rz::models {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A folder of the test's own, and a ledger that must be empty when the test ends.
class DataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("rz_data_test_{}_{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
    before_bytes_ = RankContext::current()->memory().current_bytes();
  }
  void TearDown() override {
    fs::remove_all(folder_);
    EXPECT_EQ(RankContext::current()->memory().current_bytes(), before_bytes_);
    EXPECT_EQ(RankContext::current()->memory().unaccounted_bytes(), 0);
  }

  std::string write(const std::string& file, std::string_view bytes) const {
    const std::string path = (folder_ / file).string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }

  // An llm.c token file; `mend` may damage the header.
  std::string write_tokens(
      const std::string& file, const std::vector<uint16_t>& tokens,
      const std::function<void(std::array<int32_t, 256>&)>& damage = [](auto&) {}, std::string_view tail = "") const {
    std::array<int32_t, 256> header{};
    header[0] = 20240520;
    header[1] = 1;
    header[2] = static_cast<int32_t>(tokens.size());
    damage(header);
    std::string bytes(reinterpret_cast<const char*>(header.data()), sizeof header);
    bytes.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
    return write(file, bytes + std::string(tail));
  }

  fs::path folder_;
  int64_t before_bytes_ = 0;
};

using test::config_error;

std::vector<int32_t> all(const Tokens& tokens) {
  std::vector<int32_t> out(static_cast<size_t>(tokens.size()));
  tokens.copy_to(0, out);
  return out;
}

TokenDataset counting_dataset(int64_t train, int64_t validation) {
  const auto make = [](int64_t count, int64_t from) {
    Tokens tokens(count, 2, "counting");
    for (int64_t i = 0; i < count; ++i) reinterpret_cast<uint16_t*>(tokens.data())[i] = static_cast<uint16_t>(from + i);
    return tokens;
  };
  return TokenDataset::of_tokens(make(train, 0), make(validation, 30000), 65536, "counting");
}

TEST_F(DataTest, SymbolsAreTheDifferentBytesInOrder) {
  const auto symbols = TextSymbols::of_text("banana\n\xff!");
  EXPECT_EQ(symbols.bytes(), "\n!abn\xff");
  EXPECT_EQ(symbols.encode("nab\xff"), (std::vector<int32_t>{4, 2, 3, 5}));
  EXPECT_EQ(symbols.decode(symbols.encode("banana!")), "banana!");
  EXPECT_EQ(TextSymbols::of_bytes(symbols.bytes()).encode("ban"), symbols.encode("ban"));
  EXPECT_TRUE(symbols.encode("").empty());
}

TEST_F(DataTest, SymbolErrorsNameByteAndPosition) {
  const auto symbols = TextSymbols::of_text("banana");
  EXPECT_THAT(config_error([&] { symbols.encode("bax"); }),
              ::testing::AllOf(HasSubstr("'x'"), HasSubstr("position 2"), HasSubstr("3 different")));
  EXPECT_THAT(config_error([&] { symbols.encode("a\n"); }), HasSubstr("0x0a"));
  EXPECT_THROW(symbols.decode(std::vector<int32_t>{3}), Error);
  EXPECT_THROW(symbols.decode(std::vector<int32_t>{-1}), Error);
  EXPECT_THAT(config_error([] { TextSymbols::of_bytes("aab"); }), HasSubstr("ascend"));
}

TEST_F(DataTest, TextIsSplitAtTheEnd) {
  const auto dataset = load_text_file(write("t.txt", "aaaaaaaabbbbbbbbcccd"), 0.2);
  EXPECT_EQ(dataset.vocabulary(), 4);
  EXPECT_EQ(dataset.decode(all(dataset.tokens(Split::train))), "aaaaaaaabbbbbbbb");
  EXPECT_EQ(dataset.decode(all(dataset.tokens(Split::validation))), "cccd");
  EXPECT_EQ(dataset.tokens(Split::train).token_bytes(), 1);
}

TEST_F(DataTest, AllByteValuesSurvive) {
  std::string text;
  for (int i = 0; i < 1024; ++i) text.push_back(static_cast<char>(i * 37 % 256));
  const auto dataset = TokenDataset::of_text(text, 0.5, "bytes");
  EXPECT_EQ(dataset.vocabulary(), 256);
  EXPECT_EQ(dataset.decode(all(dataset.tokens(Split::train))) + dataset.decode(all(dataset.tokens(Split::validation))), text);
}

TEST_F(DataTest, TextFileErrorsNameTheFile) {
  const std::string missing = (folder_ / "none.txt").string();
  EXPECT_THAT(config_error([&] { load_text_file(missing, 0.1); }), ::testing::AllOf(HasSubstr(missing), HasSubstr("No such file")));
  EXPECT_THAT(config_error([&] { load_text_file(folder_.string(), 0.1); }),
              ::testing::AllOf(HasSubstr(folder_.string()), HasSubstr("not a regular file")));
  const std::string empty = write("empty.txt", "");
  EXPECT_THAT(config_error([&] { load_text_file(empty, 0.1); }), HasSubstr(empty));
  const std::string tiny = write("tiny.txt", "abcdefghij");
  EXPECT_THAT(config_error([&] { load_text_file(tiny, 0.1); }), ::testing::AllOf(HasSubstr(tiny), HasSubstr("10 bytes")));
  EXPECT_THAT(config_error([&] { load_text_file(tiny, 1.5); }), HasSubstr("1.5"));
}

TEST_F(DataTest, KingJamesBibleIsTheKnownText) {
  const auto dataset = load_king_james_bible(0.1);
  EXPECT_EQ(dataset.vocabulary(), 63);
  EXPECT_EQ(dataset.tokens(Split::train).size(), 3724065);
  EXPECT_EQ(dataset.tokens(Split::validation).size(), 413785);
  std::vector<int32_t> start(54);
  dataset.tokens(Split::train).copy_to(0, start);
  EXPECT_EQ(dataset.decode(start), "In the beginning God created the heaven and the earth.");
  std::vector<int32_t> end(6);
  dataset.tokens(Split::validation).copy_to(413785 - 6, end);
  EXPECT_EQ(dataset.decode(end), "Amen.\n");
}

TEST_F(DataTest, WithoutTheBibleTheErrorSaysWhatToInstall) {
  const std::string absent = config_error([] { load_king_james_bible(0.1, "rz-no-such-bible"); });
  EXPECT_THAT(absent, ::testing::AllOf(HasSubstr("rz-no-such-bible"), HasSubstr("apt-get install bible-kjv bible-kjv-text")));
  // Programs that succeed without printing it, that fail, and that never stop printing.
  EXPECT_THAT(config_error([] { load_king_james_bible(0.1, "true"); }),
              ::testing::AllOf(HasSubstr("0 lines"), HasSubstr("31102"), HasSubstr("apt-get")));
  EXPECT_THAT(config_error([] { load_king_james_bible(0.1, "false"); }), HasSubstr("failed"));
  EXPECT_THAT(config_error([] { load_king_james_bible(0.1, "yes"); }), ::testing::AnyOf(HasSubstr("failed"), HasSubstr("31102")));
  const std::string endless = write("endless", "#!/bin/sh\nwhile :; do echo Ge1:1 In the beginning; done\n");
  fs::permissions(endless, fs::perms::owner_all);
  EXPECT_THAT(config_error([&] { load_king_james_bible(0.1, endless); }), HasSubstr("31102"));
}

TEST_F(DataTest, TokenFilesAreRead) {
  const auto dataset = load_token_files(write_tokens("a.bin", {1, 2, 50256}), write_tokens("b.bin", {7, 0}), 50257);
  EXPECT_EQ(all(dataset.tokens(Split::train)), (std::vector<int32_t>{1, 2, 50256}));
  EXPECT_EQ(all(dataset.tokens(Split::validation)), (std::vector<int32_t>{7, 0}));
  EXPECT_EQ(dataset.vocabulary(), 50257);
  EXPECT_FALSE(dataset.symbols());
  EXPECT_THAT(config_error([&] { dataset.encode("x"); }), HasSubstr("a.bin"));
  EXPECT_THAT(config_error([&] { dataset.decode(std::vector<int32_t>{1}); }), HasSubstr("tokenizer"));
  EXPECT_EQ(all(read_token_file(write_tokens("c.bin", {65535, 0}), 65536)), (std::vector<int32_t>{65535, 0}));
}

TEST_F(DataTest, DamagedTokenFilesAreRefused) {
  using Header = std::array<int32_t, 256>;
  const auto error_of = [&](const std::string& path) {
    const std::string message = config_error([&] { read_token_file(path, 100); });
    EXPECT_THAT(message, HasSubstr(path));
    return message;
  };
  EXPECT_THAT(error_of((folder_ / "none").string()), HasSubstr("No such file"));
  EXPECT_THAT(error_of(write("short", std::string(1023, '\0'))),
              ::testing::AllOf(HasSubstr("truncated"), HasSubstr("1023"), HasSubstr("1024")));
  EXPECT_THAT(error_of(write("empty", "")), HasSubstr("0 bytes"));
  EXPECT_THAT(error_of(write_tokens("magic", {1, 2}, [](Header& h) { h[0] = 20240801; })),
              ::testing::AllOf(HasSubstr("20240801"), HasSubstr("20240520")));
  EXPECT_THAT(error_of(write_tokens("version", {1, 2}, [](Header& h) { h[1] = 2; })), HasSubstr("version 2, expected 1"));
  EXPECT_THAT(error_of(write_tokens("negative", {1, 2}, [](Header& h) { h[2] = -1; })), HasSubstr("-1"));
  EXPECT_THAT(error_of(write_tokens("huge", {1, 2}, [](Header& h) { h[2] = INT32_MAX; })),
              ::testing::AllOf(HasSubstr("2147483647"), HasSubstr("holds 2")));
  EXPECT_THAT(error_of(write_tokens("fewer", {1, 2, 3}, [](Header& h) { h[2] = 2; })), HasSubstr("2 bytes follow the 2 tokens"));
  EXPECT_THAT(error_of(write_tokens(
                  "odd", {1, 2}, [](Header&) {}, "x")),
              HasSubstr("1 bytes follow"));
  EXPECT_THAT(error_of(write_tokens("one", {1})), HasSubstr("at least 2"));
  EXPECT_THAT(error_of(write_tokens("large", {1, 2, 100, 3})),
              ::testing::AllOf(HasSubstr("token 100"), HasSubstr("position 2"), HasSubstr("vocabulary of 100")));
  EXPECT_THAT(config_error([&] { read_token_file(write_tokens("v", {1, 2}), 65537); }), HasSubstr("65537"));
}

TEST_F(DataTest, TokenFilesTruncatedAnywhereAreRefused) {
  const std::string whole = write_tokens("whole", {1, 2, 3, 4, 5});
  std::ifstream in(whole, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  for (size_t size = 0; size < bytes.size(); size += size < 1020 ? 17 : 1) {
    const std::string path = write("cut", std::string_view(bytes).substr(0, size));
    EXPECT_THAT(config_error([&] { read_token_file(path, 100); }), HasSubstr("truncated")) << size;
  }
}

TEST_F(DataTest, TrainBatchIsWindowsShiftedByOne) {
  const auto dataset = counting_dataset(100, 20);
  const TokenBatch batch = make_train_batch(dataset, 1, 2, 0, 5, 8);
  EXPECT_EQ(batch.inputs.shape(), (Shape{5, 8}));
  EXPECT_EQ(batch.inputs.storage()->category(), Category::input);
  EXPECT_EQ(batch.targets.storage()->category(), Category::input);
  const auto inputs = batch.inputs.to_vector<int32_t>();
  const auto targets = batch.targets.to_vector<int32_t>();
  for (size_t b = 0; b < 5; ++b) {
    const auto start = static_cast<int32_t>(Random(1, "data", 2, b).below(0, 92));
    for (size_t t = 0; t < 8; ++t) {
      EXPECT_EQ(inputs[b * 8 + t], start + static_cast<int32_t>(t));
      EXPECT_EQ(targets[b * 8 + t], start + static_cast<int32_t>(t) + 1);
    }
  }
}

TEST_F(DataTest, TrainBatchDoesNotDependOnTheNumberOfRanks) {
  const auto dataset = counting_dataset(1000, 20);
  const auto whole = make_train_batch(dataset, 3, 17, 0, 13, 4);
  for (const int size : {1, 2, 3, 5, 13, 20}) {
    std::vector<int32_t> inputs;
    std::vector<int32_t> targets;
    for (int rank = 0; rank < size; ++rank) {
      const SampleRange range = sample_range(13, rank, size);
      const auto part = make_train_batch(dataset, 3, 17, range.begin, range.count(), 4);
      for (const int32_t x : part.inputs.to_vector<int32_t>()) inputs.push_back(x);
      for (const int32_t x : part.targets.to_vector<int32_t>()) targets.push_back(x);
    }
    EXPECT_EQ(inputs, whole.inputs.to_vector<int32_t>()) << size << " ranks";
    EXPECT_EQ(targets, whole.targets.to_vector<int32_t>()) << size << " ranks";
  }
  EXPECT_NE(make_train_batch(dataset, 4, 17, 0, 13, 4).inputs.to_vector<int32_t>(), whole.inputs.to_vector<int32_t>());
  EXPECT_NE(make_train_batch(dataset, 3, 18, 0, 13, 4).inputs.to_vector<int32_t>(), whole.inputs.to_vector<int32_t>());
}

TEST_F(DataTest, TrainBatchReachesFirstAndLastWindow) {
  const auto dataset = counting_dataset(6, 20);  // T = 3: starts 0, 1, 2
  const auto inputs = make_train_batch(dataset, 0, 0, 0, 200, 3).inputs.to_vector<int32_t>();
  std::set<int32_t> starts;
  for (size_t b = 0; b < 200; ++b) starts.insert(inputs[b * 3]);
  EXPECT_EQ(starts, (std::set<int32_t>{0, 1, 2}));
}

TEST_F(DataTest, ValidationPredictsEveryTokenOnce) {
  const auto dataset = counting_dataset(100, 30);
  EXPECT_EQ(validation_windows(dataset, 29), 1);
  EXPECT_EQ(validation_windows(dataset, 8), 3);
  EXPECT_EQ(validation_windows(dataset, 1), 29);
  const auto batch = make_validation_batch(dataset, 0, 3, 8);
  std::vector<int32_t> expected(24);
  std::iota(expected.begin(), expected.end(), 30001);
  EXPECT_EQ(batch.targets.to_vector<int32_t>(), expected);
  const auto second = make_validation_batch(dataset, 1, 2, 8);
  EXPECT_EQ(second.inputs.to_vector<int32_t>().front(), 30008);
  EXPECT_EQ(make_validation_batch(dataset, 3, 0, 8).inputs.numel(), 0);
  EXPECT_THROW(make_validation_batch(dataset, 2, 2, 8), Error);
  EXPECT_THROW(make_validation_batch(dataset, -1, 1, 8), Error);
}

TEST_F(DataTest, ContextLongerThanTheDataNamesBoth) {
  const auto dataset = counting_dataset(100, 30);
  EXPECT_NO_THROW(dataset.check_context(29));
  EXPECT_THAT(config_error([&] { dataset.check_context(30); }),
              ::testing::AllOf(HasSubstr("context of 30"), HasSubstr("validation"), HasSubstr("30 tokens"), HasSubstr("at most 29")));
  EXPECT_THAT(config_error([&] { make_train_batch(dataset, 0, 0, 0, 1, 100); }),
              ::testing::AllOf(HasSubstr("context of 100"), HasSubstr("training"), HasSubstr("at most 99")));
  EXPECT_NO_THROW(make_train_batch(dataset, 0, 0, 0, 1, 99));
}

TEST_F(DataTest, SampleRangesAreBalancedAndCoverAll) {
  for (const int64_t samples : {0, 1, 2, 7, 12, 1000}) {
    for (const int size : {1, 2, 3, 5, 7, 16}) {
      int64_t next = 0;
      int64_t least = INT64_MAX;
      int64_t most = 0;
      for (int rank = 0; rank < size; ++rank) {
        const SampleRange range = sample_range(samples, rank, size);
        EXPECT_EQ(range.begin, next);
        next = range.end;
        least = std::min(least, range.count());
        most = std::max(most, range.count());
      }
      EXPECT_EQ(next, samples);
      EXPECT_LE(most - least, 1);
    }
  }
  EXPECT_EQ(sample_range(INT64_MAX, 2, 3).end, INT64_MAX);
  EXPECT_THROW(sample_range(1, 2, 2), Error);
}

TEST_F(DataTest, DigestTellsDataApart) {
  const auto dataset = counting_dataset(100, 30);
  EXPECT_EQ(dataset.digest(), counting_dataset(100, 30).digest());
  EXPECT_NE(dataset.digest(), counting_dataset(100, 31).digest());
  EXPECT_NE(dataset.digest(), counting_dataset(101, 30).digest());
}

}  // namespace
}  // namespace rz::models
