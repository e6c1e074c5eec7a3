// Checkpoints that somebody or something changed: every byte and length of every file, files missing, extra, swapped, mixed,
// manifests that lie with a valid digest, a newer format, and seeded noise. Always an Error, never a crash or wrong values.
#include <gmock/gmock.h>

#include "optim/checkpoint/digest.h"
#include "optim/checkpoint/manifest.h"
#include "proto/checkpoint.pb.h"
#include "tests/optim/checkpoint_fixture.h"

namespace rz::optim::checkpoint {
namespace {

using test::FaultyFileSystem;
using ::testing::HasSubstr;
namespace pb = ::ringzero::checkpoint;

const std::string kStep2 = "/run/checkpoint/step-2";
const std::string kManifest = "/run/checkpoint/step-2/manifest.pb";
std::string shard_path(int rank) { return join(kStep2, shard_name(rank, 2)); }

class CheckpointDamage : public ::testing::Test {
 protected:
  CheckpointDamage() {
    for (const int64_t step : {1, 2}) EXPECT_EQ(save_step(files_, step).error(), "");
  }

  std::string verify_error() {
    try {
      verify(files_, kStep2);
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  }

  // A named step is an error; without a name the older one is taken, and that is told.
  void expect_fallback(const std::string& reason) {
    EXPECT_THAT(verify_error(), HasSubstr(reason));
    EXPECT_THAT(load_step(files_, 2).error(), HasSubstr(reason));
    const Outcome loaded = load_step(files_);
    EXPECT_EQ(loaded.error(), "");
    EXPECT_EQ(loaded.info.step, 1);
    ASSERT_EQ(loaded.info.notes.size(), 2u);
    EXPECT_THAT(loaded.info.notes[0], HasSubstr(reason));
    EXPECT_EQ(loaded.info.notes[1], "continuing from /run/checkpoint/step-1 instead");
  }

  // Changes the manifest of step 2 and gives it a valid digest again.
  void edit(const std::function<void(pb::Manifest&)>& change) {
    std::string& bytes = *files_.contents(kManifest);
    pb::ManifestFile file;
    pb::Manifest manifest;
    ASSERT_TRUE(file.ParseFromString(bytes) && manifest.ParseFromString(file.manifest()));
    change(manifest);
    file.set_manifest(manifest.SerializeAsString());
    file.set_manifest_xxh64(digest_of(file.manifest()));
    bytes = file.SerializeAsString();
  }

  FaultyFileSystem files_;
};

TEST_F(CheckpointDamage, OneFlippedBitAnywhere) {
  ASSERT_EQ(verify_error(), "");
  for (const std::string& path : {shard_path(0), shard_path(1), kManifest}) {
    std::string& bytes = *files_.contents(path);
    for (size_t i = 0; i < bytes.size(); ++i) {
      const char bit = static_cast<char>(1u << (i % 8));
      bytes[i] = static_cast<char>(bytes[i] ^ bit);
      EXPECT_THAT(verify_error(), HasSubstr(path)) << "bit " << i % 8 << " of byte " << i << " of " << bytes.size();
      bytes[i] = static_cast<char>(bytes[i] ^ bit);
    }
  }
  EXPECT_EQ(verify_error(), "");
}

TEST_F(CheckpointDamage, AFlippedBitOfATensorNamesIt) {
  files_.contents(shard_path(1))->back() ^= 4;
  expect_fallback(
      "step-2/shard-00001-of-00002.safetensors is damaged: the digest of elements [2, 3) of tensor 'model.odd \"bytes\" \\ \\xc3\\xa9' "
      "does not match");
}

TEST_F(CheckpointDamage, EveryTruncationAndATrailingByte) {
  for (const std::string& path : {shard_path(0), kManifest}) {
    std::string& bytes = *files_.contents(path);
    const std::string whole = bytes;
    for (size_t length = 0; length < whole.size(); ++length) {
      bytes = whole.substr(0, length);
      EXPECT_THAT(verify_error(), HasSubstr(path)) << length;
    }
    bytes = whole + '\0';
    EXPECT_THAT(verify_error(), HasSubstr(path));
    bytes = whole;
  }
}

TEST_F(CheckpointDamage, BytesThatNoDigestCovers) {
  for (const char* unknown_field : {"\x1a\x01x", "\x20\x01"}) {
    std::string& bytes = *files_.contents(kManifest);
    const std::string whole = bytes;
    bytes += unknown_field;
    EXPECT_THAT(verify_error(), HasSubstr("bytes that belong to nothing"));
    bytes = whole;
  }
}

TEST_F(CheckpointDamage, Missing) {
  files_.erase(shard_path(1));
  expect_fallback("cannot open " + shard_path(1) + ": No such file");
}

TEST_F(CheckpointDamage, MissingManifest) {
  files_.erase(kManifest);
  expect_fallback("cannot open " + kManifest);
}

TEST_F(CheckpointDamage, Extra) {
  files_.put(join(kStep2, "shard-00002-of-00003.safetensors"), "x");
  expect_fallback("shard-00002-of-00003.safetensors' does not belong to this checkpoint");
}

TEST_F(CheckpointDamage, Swapped) {
  std::swap(*files_.contents(shard_path(0)), *files_.contents(shard_path(1)));
  expect_fallback("is damaged");
}

TEST_F(CheckpointDamage, MixedWithAnotherStep) {
  *files_.contents(shard_path(0)) = *files_.contents("/run/checkpoint/step-1/" + shard_name(0, 2));
  expect_fallback("is damaged: the digest of elements");
}

TEST_F(CheckpointDamage, FolderOfAnotherStep) {
  files_.rename("/run/checkpoint/step-2", "/run/checkpoint/step-8");
  EXPECT_THAT(load_step(files_, 8).error(), HasSubstr("step-8 holds step 2"));
  EXPECT_EQ(load_step(files_).info.step, 1);
}

TEST_F(CheckpointDamage, NoneVerifies) {
  files_.erase(kManifest);
  files_.contents("/run/checkpoint/step-1/manifest.pb")->clear();
  const std::string error = load_step(files_).error();
  EXPECT_THAT(error, HasSubstr("none of 2 verifies"));
  EXPECT_THAT(error, HasSubstr("step-1/manifest.pb is damaged"));
}

// Not damage: an older checkpoint must not be taken in silence, or at all.
TEST_F(CheckpointDamage, NewerFormat) {
  edit([](pb::Manifest& m) { m.set_format_version(kFormatVersion + 1); });
  for (const std::optional<int64_t> step : {std::optional<int64_t>(2), std::optional<int64_t>()})
    EXPECT_THAT(load_step(files_, step).error(), HasSubstr("manifest.pb has format version 2, newer than 1"));
}

TEST_F(CheckpointDamage, ManifestsThatLie) {
  struct Row {
    const char* expected;
    std::function<void(pb::Manifest&)> change;
  };
  const auto first = [](pb::Manifest& m) { return m.mutable_tensors(0); };
  // Tensor 1 is [7, 11] in two ranges.
  const auto weight = [](pb::Manifest& m) { return m.mutable_tensors(1); };
  const Row rows[] = {
      {"format version 0", [](pb::Manifest& m) { m.clear_format_version(); }},
      {"says nothing about the run", [](pb::Manifest& m) { m.clear_run(); }},
      {"negative step", [](pb::Manifest& m) { m.mutable_run()->set_step(-1); }},
      {"impossible world size", [](pb::Manifest& m) { m.mutable_run()->set_world_size(int64_t{1} << 40); }},
      {"job text does not match", [](pb::Manifest& m) { m.mutable_run()->set_job_text("x"); }},
      {"file name '../x' is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->set_file("../x"); }},
      {"file name '..' is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->set_file(".."); }},
      {"file name '/etc/passwd' is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->set_file("/etc/passwd"); }},
      {"file name '' is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->clear_file(); }},
      {"is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->set_file(std::string(129, 'a')); }},
      {"file name 'a\\x00' is not allowed", [](pb::Manifest& m) { m.mutable_shards(0)->set_file(std::string("a\0", 2)); }},
      {"listed twice or out of order", [](pb::Manifest& m) { m.mutable_shards(1)->set_file(m.shards(0).file()); }},
      {"bytes", [](pb::Manifest& m) { m.mutable_shards(0)->set_bytes(-1); }},
      {"instead of", [](pb::Manifest& m) { m.mutable_shards(0)->set_bytes(int64_t{1} << 62); }},
      {"its digest does not match, though", [](pb::Manifest& m) { m.mutable_shards(0)->set_xxh64(1); }},
      {"does not belong to this checkpoint", [](pb::Manifest& m) { m.mutable_shards(0)->set_file("manifest.pc"); }},
      {"listed twice or out of order", [&](pb::Manifest& m) { first(m)->set_name("zzz"); }},
      {"has no name", [&](pb::Manifest& m) { first(m)->set_name(""); }},
      {"is missing", [&](pb::Manifest& m) { first(m)->set_name("a"); }},
      {"f33", [&](pb::Manifest& m) { first(m)->set_dtype("f33"); }},
      {"has another type", [&](pb::Manifest& m) { weight(m)->set_dtype("i32"); }},
      {"is negative", [&](pb::Manifest& m) { weight(m)->set_shape(0, -7); }},
      {"overflows", [&](pb::Manifest& m) { weight(m)->set_shape(0, int64_t{1} << 61); }},
      {"overflows",
       [&](pb::Manifest& m) { weight(m)->set_shape(0, 0), weight(m)->set_shape(1, int64_t{1} << 62), weight(m)->add_shape(4); }},
      {"dimensions",
       [&](pb::Manifest& m) {
         for (int i = 0; i < 9; ++i) weight(m)->add_shape(1);
       }},
      {"elements [77, 84) of tensor", [&](pb::Manifest& m) { weight(m)->set_shape(0, 7), weight(m)->set_shape(1, 12); }},
      {"refers to shard 2 of 2", [&](pb::Manifest& m) { weight(m)->mutable_ranges(0)->set_shard(2); }},
      {"refers to shard -1", [&](pb::Manifest& m) { weight(m)->mutable_ranges(0)->set_shard(-1); }},
      {"entries instead of", [&](pb::Manifest& m) { weight(m)->mutable_ranges(0)->set_shard(1); }},
      {"impossible range", [&](pb::Manifest& m) { weight(m)->mutable_ranges(0)->set_begin(-1); }},
      {"impossible range", [&](pb::Manifest& m) { weight(m)->mutable_ranges(1)->set_end(78); }},
      {"impossible range", [&](pb::Manifest& m) { weight(m)->mutable_ranges(1)->set_end(0); }},
      {"more than once", [&](pb::Manifest& m) { weight(m)->mutable_ranges(1)->set_begin(38); }},
      {"are missing", [&](pb::Manifest& m) { weight(m)->mutable_ranges(1)->set_begin(40); }},
      {"are missing", [&](pb::Manifest& m) { weight(m)->mutable_ranges()->RemoveLast(); }},
      {"does not match", [&](pb::Manifest& m) { weight(m)->mutable_ranges(0)->set_xxh64(1); }},
      {"entries instead of", [](pb::Manifest& m) { m.mutable_tensors()->DeleteSubrange(1, 1); }},
  };
  const std::string whole = *files_.contents(kManifest);
  int row_number = 0;
  for (const Row& row : rows) {
    edit(row.change);
    EXPECT_THAT(verify_error(), HasSubstr(row.expected)) << "row " << row_number;
    *files_.contents(kManifest) = whole;
    ++row_number;
  }
  EXPECT_EQ(verify_error(), "");
}

// Noise in the raw file, and in a manifest whose digest is made valid again, so that the rules behind it are reached.
TEST_F(CheckpointDamage, Noise) {
  std::mt19937_64 random(2024);
  std::string& bytes = *files_.contents(kManifest);
  const std::string whole = bytes;
  pb::ManifestFile file;
  ASSERT_TRUE(file.ParseFromString(whole));
  const std::string inner = file.manifest();
  int accepted = 0;
  for (int i = 0; i < 6000; ++i) {
    const bool valid_digest = i % 4 != 0;
    std::string noisy = valid_digest ? inner : whole;
    for (uint64_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % noisy.size();
      switch (random() % 4) {
        case 0:
          noisy[at] = static_cast<char>(random());
          break;
        case 1:
          noisy.erase(at, 1 + random() % 9);
          break;
        case 2:
          noisy.insert(at, noisy.substr(random() % noisy.size(), random() % 40));
          break;
        default:
          noisy[at] = static_cast<char>(0xff);
      }
      if (noisy.empty()) noisy.push_back('x');
    }
    if (valid_digest) {
      file.set_manifest(noisy);
      file.set_manifest_xxh64(digest_of(noisy));
      noisy = file.SerializeAsString();
    }
    bytes = noisy;
    const std::string error = verify_error();  // anything but an rz::Error ends the test
    accepted += error.empty();
    if (!valid_digest && noisy != whole) {
      EXPECT_NE(error, "") << i;
    }
  }
  EXPECT_LT(accepted, 3000);  // noise in a step, a scalar or a seed is not damage that a digest made for it can show
}

}  // namespace
}  // namespace rz::optim::checkpoint
