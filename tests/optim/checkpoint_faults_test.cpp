// A save that is hit at every call it makes: the process dies, the call fails, the power goes, the disk is full. Whatever
// happens, the last whole checkpoint loads; and a save that said it succeeded has done so.
#include <gmock/gmock.h>

#include <cerrno>
#include <system_error>

#include "tests/optim/checkpoint_fixture.h"
#include "tests/support/watchdog.h"

namespace rz::optim::checkpoint {
namespace {

using test::FaultyFileSystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using PowerLoss = FaultyFileSystem::PowerLoss;

// A directory before a save, the save, and what may be loaded if it does not come to its end.
struct Scenario {
  const char* name;
  std::unique_ptr<FaultyFileSystem> before;
  int64_t step;
  int64_t old_step;  // -1: none
  bool has_leftovers = false;
};

std::unique_ptr<FaultyFileSystem> with_steps(std::vector<int64_t> steps) {
  auto files = std::make_unique<FaultyFileSystem>();
  for (const int64_t step : steps) EXPECT_EQ(save_step(*files, step).error(), "");
  return files;
}

// As a process leaves it that died between moving the former step-2 and putting the new one in its place.
std::unique_ptr<FaultyFileSystem> after_a_death_in_mid_commit() {
  auto leftovers = with_steps({1, 2});
  leftovers->rename("/run/checkpoint/step-2", "/run/checkpoint/step-2.old-dead");
  leftovers->create_directory("/run/checkpoint/step-2.tmp-dead");
  leftovers->put("/run/checkpoint/step-2.tmp-dead/shard-00000-of-00002.safetensors", "half");
  leftovers->create_directory("/run/checkpoint/step-0.trash-dead");
  leftovers->sync_directory("/run/checkpoint");
  return leftovers;
}

std::vector<Scenario> scenarios() {
  std::vector<Scenario> out;
  out.push_back({"the first", std::make_unique<FaultyFileSystem>(), 3, -1});
  out.push_back({"the third", with_steps({1, 2}), 3, 2});
  out.push_back({"the same step again", with_steps({1, 2}), 2, 2});
  out.push_back({"after a death in mid-commit", after_a_death_in_mid_commit(), 2, 2, true});
  return out;
}
// What a rank's save or load ended with.
template <class Work>
std::string error_of(Work&& work) {
  try {
    work();
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

constexpr int64_t kNewSalt = 5;

// One hit save after the other on the same ranks: errors that all ranks agree on leave the communicator usable.
class EveryCall : public ::testing::Test {
 protected:
  enum class Fault { die, fail };

  void run(Fault fault) {
    for (const Scenario& scenario : scenarios()) {
      int64_t hits = 0;
      test::run_on_ranks(2, [&](comm::Communicator& comm) {
        int64_t k = 0;
        while (hit(comm, scenario, fault, k)) ++k;
        if (comm.rank() == 0) hits = k;
      });
      EXPECT_GT(hits, 40) << scenario.name;
    }
  }

 private:
  // The others wait before and after: the file systems are shared.
  static void on_rank_0(comm::Communicator& comm, const std::function<void()>& work) {
    comm.barrier().wait();
    if (comm.rank() == 0) work();
    comm.barrier().wait();
  }

  // False when the save makes fewer calls than k, or after a failed expectation.
  bool hit(comm::Communicator& comm, const Scenario& scenario, Fault fault, int64_t k) {
    on_rank_0(comm, [&] {
      files_ = std::make_unique<FaultyFileSystem>(*scenario.before);
      if (fault == Fault::die) {
        files_->die_at(k);
      } else {
        files_->fail_call(k, EIO);
      }
    });
    const Job job{.salt = kNewSalt};
    const std::string error = error_of([&] { save_on(comm, *files_, scenario.step, job); });
    on_rank_0(comm, [&] {
      was_hit_ = k < files_->calls();
      call_ = files_->call(k);
      names_ = files_->names(kDirectory);
      names_before_ = FaultyFileSystem(*scenario.before).names(kDirectory);
      files_->heal();
    });
    const std::string what = fmt::format("saving {}, call {} ({}): {}", scenario.name, k, call_, error);
    SCOPED_TRACE(what);
    test::now_doing(what);
    if (!was_hit_) {
      EXPECT_EQ(error, "");
    }
    const Must must = error.empty() ? Must::new_one : fault == Fault::fail ? Must::old_one : Must::any;
    if (must == Must::old_one) {
      EXPECT_THAT(error, HasSubstr("rank "));
      EXPECT_THAT(error, HasSubstr("Input/output error"));
      // Undone, not just survived.
      EXPECT_EQ(names_, scenario.has_leftovers ? names_ : names_before_);
    }
    expect_loadable(comm, *files_, scenario, must);
    for (const PowerLoss loss : {PowerLoss::drop_unsynced, PowerLoss::keep_names, PowerLoss::random}) {
      on_rank_0(comm, [&] {
        dark_ = std::make_unique<FaultyFileSystem>(*files_);
        dark_->lose_power(loss, static_cast<uint64_t>(k));
      });
      expect_loadable(comm, *dark_, scenario, must);
    }
    // Training goes on: the next save works on what was left, and leaves no leftovers.
    EXPECT_EQ(error_of([&] { save_on(comm, *dark_, 7, {}); }), "");
    on_rank_0(comm, [&] {
      EXPECT_EQ(list_steps(*dark_, kDirectory).back(), 7);
      EXPECT_EQ(dark_->names(kDirectory).size(), list_steps(*dark_, kDirectory).size());
      go_on_ = was_hit_ && !HasFailure();
    });
    return go_on_;
  }

  enum class Must { old_one, new_one, any };

  void expect_loadable(comm::Communicator& comm, FaultyFileSystem& files, const Scenario& scenario, Must must) {
    CheckpointInfo info;
    const std::string error = error_of([&] { info = load_on(comm, files, {}, {}); });
    const bool found = error.empty();
    if (scenario.old_step < 0 && must != Must::new_one && !found) {
      EXPECT_THAT(error, HasSubstr("no checkpoint in"));
      return;
    }
    ASSERT_EQ(error, "");
    EXPECT_TRUE(info.notes.empty()) << info.notes[0];
    const bool is_new = info.counters["salt"] == kNewSalt;
    EXPECT_EQ(info.step, is_new ? scenario.step : scenario.old_step);
    if (must != Must::any) {
      EXPECT_EQ(is_new, must == Must::new_one);
    }
  }

  std::unique_ptr<FaultyFileSystem> files_, dark_;
  bool was_hit_ = false, go_on_ = true;
  std::string call_;
  std::vector<std::string> names_, names_before_;
};

TEST_F(EveryCall, TheProcessDies) { run(Fault::die); }
TEST_F(EveryCall, TheCallFails) { run(Fault::fail); }

TEST(CheckpointFaults, WhatADeathLeftIsPutInOrder) {
  const auto files = after_a_death_in_mid_commit();
  EXPECT_THAT(list_steps(*files, kDirectory), ElementsAre(1, 2));
  EXPECT_EQ(load_step(*files, 2).info.step, 2);
  EXPECT_EQ(save_step(*files, 3).error(), "");
  EXPECT_THAT(files->names(kDirectory), ElementsAre("step-2", "step-3"));
  EXPECT_EQ(load_step(*files, 2).info.step, 2);
}

// The negative control of power loss: where syncing does nothing, the tests above would see it.
TEST(CheckpointFaults, WithoutSyncsAPowerLossIsSeen) {
  for (const char* ignored : {"sync /run/checkpoint/step", "sync directory /run/checkpoint"}) {
    FaultyFileSystem files;
    files.ignore_syncs(ignored);
    EXPECT_EQ(save_step(files, 1).error(), "");
    files.lose_power(PowerLoss::drop_unsynced);
    EXPECT_NE(load_step(files).error(), "") << ignored;
  }
}

TEST(CheckpointFaults, DiskFull) {
  const auto before = with_steps({1, 2});
  FaultyFileSystem roomy(*before);
  const int64_t needed = save_step(roomy, 3).result.bytes;
  std::unique_ptr<FaultyFileSystem> files;
  test::run_on_ranks(2, [&](comm::Communicator& comm) {
    for (int64_t room = 0; room < needed; room += 211) {
      if (comm.rank() == 0) {
        files = std::make_unique<FaultyFileSystem>(*before);
        int64_t used = 0;
        for (const char* step : {"/run/checkpoint/step-1", "/run/checkpoint/step-2"})
          for (const auto& name : files->names(step)) used += static_cast<int64_t>(files->contents(join(step, name))->size());
        files->set_capacity(used + room);
      }
      comm.barrier().wait();
      EXPECT_THAT(error_of([&] { save_on(comm, *files, 3, {}); }), HasSubstr("No space left on device")) << room;
      if (comm.rank() == 0) {
        EXPECT_THAT(files->names(kDirectory), ElementsAre("step-1", "step-2"));
      }
      EXPECT_EQ(load_on(comm, *files, {}, {}).step, 2);
      comm.barrier().wait();
    }
  });
}

TEST(CheckpointFaults, ErrorsNameRankPathAndCause) {
  struct Row {
    const char* call;
    int code;
    const char* expected;
  };
  for (const Row& row : {Row{"create /run/checkpoint/step-3.tmp-", EACCES, "rank 0/3: cannot create /run/checkpoint/step-3.tmp-"},
                         Row{"shard-00001", EIO, "rank 1/3: cannot create"}, Row{"safetensors", ENOSPC, "; rank 2/3: cannot create"},
                         Row{"manifest.pb", EDQUOT, "rank 0/3: cannot create"},
                         Row{"write /run/checkpoint/step-3.tmp", EFBIG, "File too large"}, Row{"close", EIO, "cannot close"},
                         Row{"sync /run", EIO, "cannot sync /run"}, Row{"sync directory /run/checkpoint", EIO, "cannot sync directory"},
                         Row{"mkdir /run/checkpoint/step-3", EMLINK, "cannot create directory"}, Row{"rename", EXDEV, "cannot rename"}}) {
    const auto files = with_steps({1});
    files->heal();
    files->fail_matching(row.call, row.code);
    const std::string error = save_step(*files, 3, {.ranks = 3}).error();
    EXPECT_THAT(error, HasSubstr("saving step 3 to /run/checkpoint: rank ")) << row.call;
    EXPECT_THAT(error, HasSubstr(row.expected)) << row.call;
    EXPECT_THAT(error, HasSubstr(std::generic_category().message(row.code))) << row.call;
    files->heal();
    EXPECT_EQ(load_step(*files).info.step, 1) << row.call;
  }
}

TEST(CheckpointFaults, WhatCannotBeTidiedUpIsTold) {
  const auto files = with_steps({1, 2});
  files->heal();
  files->fail_matching("rmdir", EACCES);
  const Outcome saved = save_step(*files, 3);
  EXPECT_EQ(saved.error(), "");
  ASSERT_EQ(saved.result.notes.size(), 1u);
  EXPECT_THAT(saved.result.notes[0], HasSubstr("saved, but tidying up failed: cannot remove directory"));
  EXPECT_THAT(list_steps(*files, kDirectory), ElementsAre(2, 3));
}

// The disk says yes and stores something else: spoils step 2 after its last byte was written.
class LyingFileSystem : public FaultyFileSystem {
 protected:
  int do_sync_directory(const std::string& path) override {
    if (path.find("step-2.tmp") != std::string::npos) contents(join(path, "shard-00001-of-00002.safetensors"))->back() ^= 1;
    return FaultyFileSystem::do_sync_directory(path);
  }
};

TEST(CheckpointFaults, AShardThatDoesNotVerifyIsWithdrawn) {
  LyingFileSystem files;
  EXPECT_EQ(save_step(files, 1).error(), "");
  EXPECT_THAT(save_step(files, 2, {.keep = 1}).error(), HasSubstr("shard-00001-of-00002.safetensors is damaged"));
  EXPECT_THAT(files.names(kDirectory), ElementsAre("step-1"));
  EXPECT_EQ(load_step(files).info.step, 1);
}

TEST(CheckpointFaults, ARankThatIsLostEndsTheSave) {
  const auto files = with_steps({1});
  const auto errors = test::errors_on_ranks(3, {}, [&](comm::Communicator& comm) {
    if (comm.rank() == 2) throw Error("this rank dies");
    save_on(comm, *files, 2, {});
  });
  for (const auto& error : errors) EXPECT_THAT(error, HasSubstr("this rank dies"));
  EXPECT_EQ(load_step(*files).info.step, 1);
}

}  // namespace
}  // namespace rz::optim::checkpoint
