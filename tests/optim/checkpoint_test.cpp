// Checkpoints that work: any ranks to any other, retention, replacement, the real file system; and contracts that callers break.
#include "optim/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "optim/checkpoint/manifest.h"
#include "optim/checkpoint/safetensors.h"
#include "runtime/core/rank_context.h"
#include "tests/optim/checkpoint_fixture.h"

namespace rz::optim::checkpoint {
namespace {

using test::FaultyFileSystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Checkpoint, EveryPartitionToEveryOther) {
  for (const int writers : {1, 2, 3, 5}) {
    for (const Partition how : {Partition::even, Partition::rank_0, Partition::scattered}) {
      FaultyFileSystem files;
      Job saver{.ranks = writers, .how = how};
      EXPECT_EQ(save_step(files, 10 + writers, saver).error(), "");
      for (const int readers : {1, 2, 3, 5}) {
        for (const Partition to : {Partition::even, Partition::rank_0, Partition::scattered}) {
          SCOPED_TRACE(fmt::format("{} ranks partition {} -> {} ranks partition {}", writers, int(how), readers, int(to)));
          const Outcome loaded = load_step(files, {}, {.ranks = readers, .how = to});
          EXPECT_EQ(loaded.error(), "");
          EXPECT_EQ(loaded.info.world_size, writers);
          EXPECT_TRUE(loaded.info.notes.empty());
        }
      }
    }
  }
}

TEST(Checkpoint, MoreRanksThanElementsAndNoTensors) {
  FaultyFileSystem files;
  Job job{.model = {{"a", DType::f32, {2}}, {"b", DType::u8, {0}}}, .ranks = 5};
  EXPECT_EQ(save_step(files, 1, job).error(), "");
  EXPECT_EQ(load_step(files, 1, job).error(), "");
  Job nothing{.model = {}, .ranks = 3};
  EXPECT_EQ(save_step(files, 2, nothing).error(), "");
  EXPECT_EQ(load_step(files, 2, nothing).error(), "");
}

TEST(Checkpoint, ShortAndInterruptedCallsAreFinished) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    FaultyFileSystem files;
    files.make_short(seed);
    EXPECT_EQ(save_step(files, 3).error(), "");
    EXPECT_EQ(load_step(files, 3, {.ranks = 3}).error(), "");
  }
}

TEST(Checkpoint, KeepsTheNewestTwo) {
  FaultyFileSystem files;
  for (int64_t step = 1; step <= 4; ++step) {
    const Outcome saved = save_step(files, step);
    EXPECT_EQ(saved.error(), "");
    EXPECT_TRUE(saved.result.notes.empty());
    EXPECT_EQ(saved.result.path, fmt::format("{}/step-{}", kDirectory, step));
  }
  EXPECT_THAT(files.names(kDirectory), ElementsAre("step-3", "step-4"));
  EXPECT_THAT(list_steps(files, kDirectory), ElementsAre(3, 4));
  EXPECT_EQ(load_step(files).info.step, 4);
  EXPECT_EQ(load_step(files, 3).info.step, 3);
  EXPECT_EQ(save_step(files, 9, {.keep = 1}).error(), "");
  EXPECT_THAT(files.names(kDirectory), ElementsAre("step-9"));
}

TEST(Checkpoint, SavingRightAfterLoadingReplacesTheSameStep) {
  FaultyFileSystem files;
  save_step(files, 5, {.ranks = 3});
  EXPECT_EQ(load_step(files, 5).error(), "");
  EXPECT_EQ(save_step(files, 5, {.ranks = 1}).error(), "");
  EXPECT_THAT(files.names(kDirectory), ElementsAre("step-5"));
  EXPECT_EQ(load_step(files, 5).info.world_size, 1);
}

TEST(Checkpoint, LaterStepsOfAnAbandonedRunAreSetAside) {
  FaultyFileSystem files;
  save_step(files, 50);
  save_step(files, 100);
  const Outcome saved = save_step(files, 60);
  EXPECT_EQ(saved.error(), "");
  ASSERT_EQ(saved.result.notes.size(), 1u);
  EXPECT_THAT(saved.result.notes[0], HasSubstr("step-100"));
  EXPECT_EQ(load_step(files).info.step, 60);
  EXPECT_THAT(list_steps(files, kDirectory), ElementsAre(50, 60));
}

TEST(Checkpoint, SkippedPrefixesNeedNotBeAskedFor) {
  FaultyFileSystem files;
  save_step(files, 1);
  Job model_only;
  std::erase_if(model_only.model, [](const ModelTensor& t) { return t.name.starts_with("optimizer."); });
  EXPECT_EQ(load_step(files, 1, model_only, {.skip_prefixes = {"optimizer."}}).error(), "");
  EXPECT_THAT(load_step(files, 1, model_only).error(), HasSubstr("'optimizer.ids' i32[2, 2, 2, 2] is in the checkpoint only"));
}

TEST(Checkpoint, AnotherModelListsEveryDifference) {
  FaultyFileSystem files;
  save_step(files, 1);
  save_step(files, 2);
  Job other;
  other.model[0].shape = {11, 7};
  other.model[1].dtype = DType::f32;
  other.model[3].name = "model.renamed";
  other.model.push_back({"model.new", DType::f32, {2}});
  for (const std::optional<int64_t> step : {std::optional<int64_t>(2), std::optional<int64_t>()}) {
    const std::string error = load_step(files, step, other).error();
    EXPECT_THAT(error, HasSubstr("step-2 is of another model"));
    EXPECT_THAT(error, HasSubstr("'model.blocks.0.attn.q.weight' is f32[7, 11] in the checkpoint, f32[11, 7] in the model"));
    EXPECT_THAT(error, HasSubstr("'model.bias' is bf16[13] in the checkpoint, f32[13] in the model"));
    EXPECT_THAT(error, HasSubstr("'model.scalar' f64[] is in the checkpoint only"));
    EXPECT_THAT(error, HasSubstr("'model.renamed' f64[] is in the model only"));
    EXPECT_THAT(error, HasSubstr("'model.new' f32[2] is in the model only"));
    EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 5);
  }
}

TEST(Checkpoint, NothingThere) {
  FaultyFileSystem files;
  EXPECT_THAT(load_step(files).error(), HasSubstr("no checkpoint in /run/checkpoint"));
  EXPECT_TRUE(list_steps(files, kDirectory).empty());
  save_step(files, 1);
  save_step(files, 2);
  EXPECT_THAT(load_step(files, 7).error(), HasSubstr("no checkpoint of step 7 in /run/checkpoint; there: 2, 1"));
}

TEST(Checkpoint, InspectAndVerify) {
  FaultyFileSystem files;
  const Outcome saved = save_step(files, 4, {.ranks = 3});
  const Inspection seen = inspect(files, saved.result.path);
  EXPECT_EQ(seen.info.step, 4);
  EXPECT_EQ(seen.info.world_size, 3);
  ASSERT_EQ(seen.tensors.size(), small_model().size());
  EXPECT_EQ(seen.tensors[1].name, "model.blocks.0.attn.q.weight");
  EXPECT_EQ(seen.tensors[1].pieces, 3);
  const auto manifest = files.contents(saved.result.path + "/manifest.pb");
  EXPECT_EQ(saved.result.bytes, seen.bytes + static_cast<int64_t>(manifest->size()));
  verify(files, saved.result.path);
}

// A checkpoint of one rank is a plain safetensors file with the tensors' own names and shapes.
TEST(Checkpoint, OneRankWritesAPlainModelFile) {
  FaultyFileSystem files;
  save_step(files, 4, {.ranks = 1});
  const File file = files.open_file(join(kDirectory, "step-4"), "shard-00000-of-00001.safetensors");
  const auto header = safetensors::read_header(file);
  const auto* entry = header.find("model.blocks.0.attn.q.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->shape, (Shape{7, 11}));
}

// The tensors are larger than the buffer and the ranges do not start at its multiples.
TEST(Checkpoint, LargeTensorsNeedOneBufferOnly) {
  FaultyFileSystem files;
  Job job{.model = {{"big", DType::u8, {3 * static_cast<int64_t>(kBufferBytes) + 17}}}, .ranks = 2};
  const auto pieces = partition(job.model, Partition::even, 2);
  on_ranks(2, [&](comm::Communicator& comm, Outcome&) {
    std::vector<std::byte> data;
    const Piece p = pieces[static_cast<size_t>(comm.rank())][0];
    fill(job.model[0], p.begin, p.end, values_key(8, 0), data);
    const std::vector<SliceToSave> slices{{"big", DType::u8, job.model[0].shape, p.begin, p.end, data.data()}};
    auto& memory = RankContext::current()->memory();
    memory.reset_peaks();
    const int64_t before = memory.current_bytes(Category::workspace);
    save(files, kDirectory, info_of(8), slices, comm);
    const int64_t used = memory.peak().by_category[static_cast<size_t>(Category::workspace)] - before;
    EXPECT_LE(used, static_cast<int64_t>(kBufferBytes) + 4096);
    EXPECT_GE(used, static_cast<int64_t>(kBufferBytes));
  });
  EXPECT_EQ(load_step(files, 8, {.model = job.model, .ranks = 3}).error(), "");
}

// What save() refuses before anything is written.
class BadSlices : public ::testing::Test {
 protected:
  std::string error_of(const std::function<void(int rank, std::vector<SliceToSave>&, CheckpointInfo&)>& spoil) {
    const std::vector<float> values(8, 1.0f);
    const std::string error = on_ranks(2, [&](comm::Communicator& comm, Outcome&) {
                                const int64_t half = comm.rank() * 4;
                                std::vector<SliceToSave> slices{{"w", DType::f32, {8}, half, half + 4, values.data()}};
                                CheckpointInfo info = info_of(3);
                                spoil(comm.rank(), slices, info);
                                save(files_, kDirectory, info, slices, comm);
                              }).error();
    EXPECT_EQ(files_.names("/").size(), 0u);
    return error;
  }
  FaultyFileSystem files_;
};

TEST_F(BadSlices, AreErrorsOnEveryRank) {
  using Slices = std::vector<SliceToSave>;
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 1) s.clear();
              }),
              HasSubstr("elements [4, 8) of tensor 'w' are missing"));
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 1) s[0].begin = 3;
              }),
              HasSubstr("elements [3, 4) of tensor 'w' are there more than once"));
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 0) s[0].end = 3;
              }),
              HasSubstr("elements [3, 4) of tensor 'w' are missing"));
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 1) s[0].dtype = DType::i32;
              }),
              HasSubstr("ranks disagree on tensor 'w': f32[8] on rank 0, i32[8] on rank 1"));
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 1) s[0].data = nullptr;
              }),
              HasSubstr("rank 1/2: slice [4, 8) of 'w' has no data"));
  EXPECT_THAT(error_of([](int r, Slices& s, CheckpointInfo&) {
                if (r == 1) s[0].end = 9;
              }),
              HasSubstr("is not within its 8 elements"));
  EXPECT_THAT(error_of([](int r, Slices&, CheckpointInfo& i) {
                if (r == 1) i.step = 4;
              }),
              HasSubstr("rank 1 has another step"));
  EXPECT_THAT(error_of([](int r, Slices&, CheckpointInfo& i) {
                if (r == 1) i.scalars["x"] = 1;
              }),
              HasSubstr("rank 1 has another step"));
}

// The machine's own file system, in a folder of its own.
class OnDisk : public ::testing::Test {
 protected:
  OnDisk() {
    std::string pattern = ::testing::TempDir() + "rz_checkpoint_XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    job_.directory = root_ + "/a/b/checkpoint";
  }
  ~OnDisk() override {
    ::chmod(job_.directory.c_str(), 0755);
    std::filesystem::remove_all(root_);
  }
  FileSystem& files_ = real_file_system();
  std::string root_;
  Job job_;
};

TEST_F(OnDisk, RoundTripReplaceAndRetain) {
  job_.ranks = 3;
  for (const int64_t step : {1, 2, 3, 3}) EXPECT_EQ(save_step(files_, step, job_).error(), "");
  EXPECT_THAT(list_steps(files_, job_.directory), ElementsAre(2, 3));
  job_.ranks = 2;
  EXPECT_EQ(load_step(files_, {}, job_).error(), "");
  verify(files_, job_.directory + "/step-3/");
  size_t entries = 0;
  for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator(job_.directory)) ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST_F(OnDisk, SymbolicLinksAndOtherThingsInAShardsPlace) {
  EXPECT_EQ(save_step(files_, 1, job_).error(), "");
  const std::string shard = job_.directory + "/step-1/shard-00001-of-00002.safetensors";
  std::filesystem::rename(shard, root_ + "/elsewhere");
  std::filesystem::create_symlink(root_ + "/elsewhere", shard);
  EXPECT_THAT(load_step(files_, 1, job_).error(), HasSubstr("cannot open " + shard));
  std::filesystem::remove(shard);
  ASSERT_EQ(::mkfifo(shard.c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_THAT(load_step(files_, 1, job_).error(), HasSubstr("cannot open " + shard));
  std::filesystem::remove(shard);
  std::filesystem::create_directory(shard);
  EXPECT_THAT(load_step(files_, 1, job_).error(), HasSubstr(shard));
}

TEST_F(OnDisk, PathsThatCannotBeDirectories) {
  std::ofstream(root_ + "/a") << "a file";
  EXPECT_THAT(save_step(files_, 1, job_).error(), HasSubstr("rank 0/2: cannot"));
  const auto prepare = [&] {
    return on_ranks(2, [&](comm::Communicator& comm, Outcome&) { prepare_directory(files_, job_.directory, comm); }).error();
  };
  EXPECT_THAT(prepare(), HasSubstr("Not a directory"));
  std::filesystem::remove(root_ + "/a");
  EXPECT_EQ(prepare(), "");
  EXPECT_TRUE(std::filesystem::is_empty(job_.directory));
  if (::geteuid() == 0) return;  // root writes everywhere
  ::chmod(job_.directory.c_str(), 0555);
  EXPECT_THAT(prepare(), HasSubstr("Permission denied"));
}

TEST(Checkpoint, ReadOnlyDirectoryIsFoundBeforeTheFirstStep) {
  FaultyFileSystem files;
  save_step(files, 1);
  files.set_read_only(true);
  const std::string error = on_ranks(3, [&](comm::Communicator& comm, Outcome&) { prepare_directory(files, kDirectory, comm); }).error();
  EXPECT_THAT(error, HasSubstr("preparing the checkpoint directory /run/checkpoint: rank 0/3: cannot create"));
  EXPECT_THAT(error, HasSubstr("rank 2/3"));
  EXPECT_THAT(error, HasSubstr("Read-only file system"));
  EXPECT_THAT(save_step(files, 2).error(), HasSubstr("Read-only file system"));
  EXPECT_EQ(load_step(files).info.step, 1);
}

}  // namespace
}  // namespace rz::optim::checkpoint
