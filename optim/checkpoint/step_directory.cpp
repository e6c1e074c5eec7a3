#include "optim/checkpoint/step_directory.h"

#include <algorithm>
#include <charconv>
#include <random>
#include <set>
#include <tuple>

namespace rz::optim::checkpoint {

namespace {

using State = StepFolder::State;

constexpr std::pair<std::string_view, State> kStates[] = {
    {"tmp", State::tmp}, {"old", State::old}, {"superseded", State::superseded}, {"trash", State::trash}};

}  // namespace

bool parse_folder_name(std::string_view name, StepFolder& folder) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return false;
  std::string_view rest = name.substr(kPrefix.size());
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), folder.step);
  const auto digits = static_cast<size_t>(end - rest.data());
  if (error != std::errc() || folder.step < 0 || (rest[0] == '0' && digits > 1) || rest[0] == '-') return false;
  folder.name = name;
  rest.remove_prefix(digits);
  folder.state = State::committed;
  if (rest.empty()) return true;
  for (const auto& [text, state] : kStates) {
    folder.state = state;
    if (rest.starts_with(fmt::format(".{}-", text))) return true;
  }
  return false;
}

std::string step_name(int64_t step) { return fmt::format("step-{}", step); }

std::string step_name(int64_t step, const char* state, const std::string& id) { return fmt::format("step-{}.{}-{}", step, state, id); }

std::string make_run_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

std::vector<StepFolder> list_folders(FileSystem& files, const std::string& directory) {
  std::vector<StepFolder> folders;
  if (!files.is_directory(directory)) return folders;
  for (const auto& entry : files.list(directory)) {
    StepFolder folder;
    if (entry.is_directory && parse_folder_name(entry.name, folder)) folders.push_back(std::move(folder));
  }
  std::sort(folders.begin(), folders.end(),
            [](const StepFolder& a, const StepFolder& b) { return std::tie(a.step, a.state, a.name) < std::tie(b.step, b.state, b.name); });
  return folders;
}

std::vector<StepFolder> loadable_folders(FileSystem& files, const std::string& directory) {
  auto folders = list_folders(files, directory);
  std::erase_if(folders, [](const StepFolder& f) { return f.state != State::committed && f.state != State::old; });
  std::stable_sort(folders.begin(), folders.end(), [](const StepFolder& a, const StepFolder& b) { return a.step > b.step; });
  return folders;
}

std::vector<std::string> sweep(FileSystem& files, const std::string& directory) {
  std::vector<std::string> notes;
  const auto folders = list_folders(files, directory);
  std::set<int64_t> committed;
  for (const StepFolder& folder : folders) {
    if (folder.state == State::committed) committed.insert(folder.step);
  }
  for (const StepFolder& folder : folders) {
    const std::string path = join(directory, folder.name);
    if (folder.state == State::old && committed.insert(folder.step).second) {
      files.rename(path, join(directory, step_name(folder.step)));
      files.sync_directory(directory);
    } else if (folder.state == State::tmp || folder.state == State::trash) {
      try {
        files.remove_directory_and_files(path);
      } catch (const Error& e) {
        notes.push_back(fmt::format("what a broken-off save left could not be removed: {}", e.what()));
      }
    }
  }
  return notes;
}

PendingStep::PendingStep(FileSystem& files, std::string directory, int64_t step, std::string id)
    : files_(files),
      directory_(std::move(directory)),
      tmp_path_(join(directory_, step_name(step, "tmp", id))),
      final_path_(join(directory_, step_name(step))),
      old_path_(join(directory_, step_name(step, "old", id))) {}

void PendingStep::create() {
  files_.create_directory(tmp_path_);
  created_ = true;
}

void PendingStep::commit() {
  if (files_.is_directory(final_path_)) {
    files_.rename(final_path_, old_path_);
    old_moved_ = true;
    files_.sync_directory(directory_);  // one of the two names is durable at any time, even where renames are reordered
  }
  files_.rename(tmp_path_, final_path_);
  committed_ = true;
  files_.sync_directory(directory_);
}

void PendingStep::withdraw() noexcept {
  try {
    if (committed_) files_.rename(final_path_, tmp_path_);
    committed_ = false;
    if (old_moved_) files_.rename(old_path_, final_path_);
    old_moved_ = false;
    if (created_) files_.remove_directory_and_files(tmp_path_);
    created_ = false;
    files_.sync_directory(directory_);
  } catch (const std::exception&) {
    // A load meanwhile finds the former checkpoint under either of its names.
  }
}

std::vector<std::string> retire(FileSystem& files, const std::string& directory, int64_t step, int keep, const std::string& id) {
  std::vector<std::string> notes;
  try {
    // Renaming first, on stable storage, before any file goes: a half-removed folder never bears a loadable name.
    std::vector<std::string> trash;
    int kept = 0;
    for (const StepFolder& folder : loadable_folders(files, directory)) {
      const std::string path = join(directory, folder.name);
      if (folder.step > step) {
        const std::string aside = join(directory, step_name(folder.step, "superseded", fmt::format("{}-{}", id, notes.size())));
        files.rename(path, aside);
        notes.push_back(fmt::format("{} is of a run that this one no longer follows: renamed to {}", path, aside));
      } else if (folder.state == State::old || ++kept > keep) {
        trash.push_back(join(directory, step_name(folder.step, "trash", fmt::format("{}-{}", id, trash.size()))));
        files.rename(path, trash.back());
      }
    }
    files.sync_directory(directory);
    for (const std::string& path : trash) files.remove_directory_and_files(path);
  } catch (const std::exception& e) {
    notes.push_back(fmt::format("saved, but tidying up failed: {}", e.what()));
  }
  return notes;
}

}  // namespace rz::optim::checkpoint
