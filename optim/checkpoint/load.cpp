// load(), inspect(), verify(), list_steps(): finding the newest checkpoint that verifies, and reading any part of it.
#include <algorithm>
#include <numeric>

#include "comm/error.h"
#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "optim/checkpoint/manifest.h"
#include "optim/checkpoint/shard_file.h"
#include "optim/checkpoint/slice_table.h"
#include "optim/checkpoint/step_directory.h"

namespace rz::optim::checkpoint {

namespace {

Manifest read_manifest(FileSystem& files, const std::string& step_path) {
  Manifest manifest = decode_manifest(read_manifest_bytes(files, step_path), join(step_path, kManifestName));
  manifest.info.path = step_path;
  return manifest;
}

class Load {
 public:
  Load(FileSystem& files, const std::string& directory, std::span<const SliceToLoad> slices, comm::Communicator& comm,
       const LoadOptions& options)
      : files_(files),
        directory_(directory),
        slices_(slices),
        comm_(comm),
        options_(options),
        what_("loading a checkpoint from " + directory) {}

  CheckpointInfo run(std::optional<int64_t> step) {
    gather_wanted();
    std::vector<std::string> problems;
    for (const StepFolder& folder : candidates(step)) {
      try {
        CheckpointInfo info = load_folder(folder);
        for (const std::string& problem : problems) info.notes.push_back("not used: " + problem);
        if (!problems.empty()) info.notes.push_back(fmt::format("continuing from {} instead", info.path));
        return info;
      } catch (const ConfigError&) {
        throw;  // for the user to mend: an older checkpoint would only hide it
      } catch (const comm::CommError&) {
        throw;
      } catch (const Error& e) {
        if (step) throw;
        problems.push_back(e.what());
      }
    }
    throw Error(fmt::format("{}: none of {} verifies: {}", what_, problems.size(), fmt::join(problems, "; ")));
  }

 private:
  void on_rank_0(const std::function<void()>& work) { agree(comm_, comm_.rank() == 0 ? failure_of(work) : Failure{}, what_); }

  // The tensors that all ranks together ask for.
  void gather_wanted() {
    std::string table;
    agree(comm_, failure_of([&] {
            std::vector<SliceRow> rows;
            for (const SliceToLoad& slice : slices_) rows.push_back(to_row(slice));
            table = pack_rows(rows);
          }),
          what_);
    std::vector<std::vector<SliceRow>> rows_of_ranks;
    for (const std::string& bytes : gather_strings(comm_, table)) rows_of_ranks.push_back(unpack_rows(bytes));
    wanted_ = merge_rows(rows_of_ranks);
  }

  // Rank 0 looks, so that all ranks try the same folders in the same order.
  std::vector<StepFolder> candidates(std::optional<int64_t> step) {
    std::string lines;
    on_rank_0([&] {
      for (const StepFolder& folder : loadable_folders(files_, directory_)) lines += folder.name + "\n";
    });
    lines = broadcast_string(comm_, lines);
    std::vector<StepFolder> folders;
    std::vector<int64_t> steps;
    for (size_t at = 0, end = 0; (end = lines.find('\n', at)) != std::string::npos; at = end + 1) {
      StepFolder folder;
      parse_folder_name(lines.substr(at, end - at), folder);
      if (steps.empty() || steps.back() != folder.step) steps.push_back(folder.step);
      if (!step || folder.step == *step) folders.push_back(std::move(folder));
    }
    if (step && folders.size() > 1) folders.resize(1);  // a named step is one folder, whole or not
    if (folders.empty() && step)
      throw ConfigError(fmt::format("no checkpoint of step {} in {}; there: {}", *step, directory_,
                                    steps.empty() ? "none" : fmt::format("{}", fmt::join(steps, ", "))));
    if (folders.empty()) throw ConfigError(fmt::format("no checkpoint in {}", directory_));
    return folders;
  }

  CheckpointInfo load_folder(const StepFolder& folder) {
    const std::string path = join(directory_, folder.name);
    std::string bytes;
    on_rank_0([&] { bytes = read_manifest_bytes(files_, path); });
    bytes = broadcast_string(comm_, bytes);
    Manifest manifest = decode_manifest(bytes, join(path, kManifestName));
    manifest.info.path = path;
    if (manifest.info.step != folder.step) throw Error(fmt::format("{} holds step {}", path, manifest.info.step));
    if (const std::string text = differences(manifest, wanted_, options_.skip_prefixes); !text.empty())
      throw ConfigError(fmt::format("{} is of another model:{}", path, text));

    on_rank_0([&] { check_no_extra_shards(files_, path, manifest); });
    std::vector<int> own;
    for (int shard = comm_.rank(); shard < static_cast<int>(manifest.shards.size()); shard += comm_.size()) own.push_back(shard);
    ShardVerifier verifier(files_, path, manifest, std::move(own));
    run_in_rounds(comm_, verifier.total_bytes(), what_, [&](uint64_t budget) { verifier.step(budget); });

    SliceReader reader(files_, path, manifest, slices_);
    run_in_rounds(comm_, reader.total_bytes(), what_, [&](uint64_t budget) { reader.step(budget); });
    return manifest.info;
  }

  FileSystem& files_;
  const std::string& directory_;
  std::span<const SliceToLoad> slices_;
  comm::Communicator& comm_;
  const LoadOptions& options_;
  const std::string what_;
  std::vector<StoredTensor> wanted_;
};

}  // namespace

CheckpointInfo load(FileSystem& files, const std::string& directory, std::optional<int64_t> step, std::span<const SliceToLoad> slices,
                    comm::Communicator& comm, const LoadOptions& options) {
  return Load(files, directory, slices, comm, options).run(step);
}

std::vector<int64_t> list_steps(FileSystem& files, const std::string& directory) {
  std::vector<int64_t> steps;
  for (const StepFolder& folder : loadable_folders(files, directory))
    if (steps.empty() || steps.back() != folder.step) steps.push_back(folder.step);
  std::reverse(steps.begin(), steps.end());
  return steps;
}

Inspection inspect(FileSystem& files, const std::string& step_path) {
  const Manifest manifest = read_manifest(files, step_path);
  Inspection out;
  out.info = manifest.info;
  for (const StoredTensor& tensor : manifest.tensors)
    out.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, static_cast<int64_t>(tensor.ranges.size())});
  for (const StoredShard& shard : manifest.shards) out.bytes += shard.bytes;
  return out;
}

void verify(FileSystem& files, const std::string& step_path) {
  const Manifest manifest = read_manifest(files, step_path);
  check_no_extra_shards(files, step_path, manifest);
  std::vector<int> shards(manifest.shards.size());
  std::iota(shards.begin(), shards.end(), 0);
  ShardVerifier verifier(files, step_path, manifest, std::move(shards));
  verifier.step(verifier.total_bytes());
}

}  // namespace rz::optim::checkpoint
