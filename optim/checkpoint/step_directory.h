// The names in a checkpoint directory, and the moves between them. Rank 0's work; nothing here communicates.
//
//   step-N                a committed checkpoint
//   step-N.tmp-ID         being written; left behind only by a crash; never read
//   step-N.old-ID         the former step-N, while its replacement takes its place; read as step N where step-N is missing
//   step-N.superseded-ID  a later step of a run that was continued from an earlier one; never read, never removed
//   step-N.trash-ID       being removed; never read
// N is decimal without leading zeros; ID is a token without dots. Other names are left alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "optim/checkpoint/file_system.h"

namespace rz::optim::checkpoint {

struct StepFolder {
  enum class State { committed, tmp, old, superseded, trash };
  int64_t step = 0;
  State state = State::committed;
  std::string name;
};

std::string step_name(int64_t step);
std::string step_name(int64_t step, const char* state, const std::string& id);

// False for a name that is none of these.
bool parse_folder_name(std::string_view name, StepFolder& folder);

// A token that no other save has.
std::string make_run_id();

// What lies in `directory`, by step ascending; empty where there is no directory.
std::vector<StepFolder> list_folders(FileSystem& files, const std::string& directory);

// Folders that may be loaded, newest step first; a committed one before an old one of the same step.
std::vector<StepFolder> loadable_folders(FileSystem& files, const std::string& directory);

// Ends what a crash interrupted: an old one whose replacement never came gets its name back; unfinished folders go.
// Throws only if the former fails; what could not be removed is told in the answer.
std::vector<std::string> sweep(FileSystem& files, const std::string& directory);

// The folder of one save, from its making under a temporary name to its commit as step-N, or its undoing.
class PendingStep {
 public:
  // Made on every rank; only rank 0 calls what changes things.
  PendingStep(FileSystem& files, std::string directory, int64_t step, std::string id);

  const std::string& tmp_path() const { return tmp_path_; }
  const std::string& final_path() const { return final_path_; }

  void create();
  // Takes the place of step-N, which moves to its old name, and syncs. After a failure call withdraw().
  void commit();
  // Undoes as much as was done: what was step-N before is step-N again, and the new folder is gone. Never throws; what it
  // cannot undo, the next save's sweep does.
  void withdraw() noexcept;

 private:
  FileSystem& files_;
  std::string directory_, tmp_path_, final_path_, old_path_;
  bool created_ = false, old_moved_ = false, committed_ = false;
};

// After a verified commit of `step`: sets later steps aside, removes the replaced one and all but the newest `keep`.
// Never throws: what did not work is told in the answer.
std::vector<std::string> retire(FileSystem& files, const std::string& directory, int64_t step, int keep, const std::string& id);

}  // namespace rz::optim::checkpoint
