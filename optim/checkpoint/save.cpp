// save(): the commit protocol. Every stage is local work whose outcome all ranks agree on before the next one begins.
#include <algorithm>
#include <cstring>
#include <map>

#include "optim/checkpoint/agreement.h"
#include "optim/checkpoint/checkpoint.h"
#include "optim/checkpoint/digest.h"
#include "optim/checkpoint/manifest.h"
#include "optim/checkpoint/shard_file.h"
#include "optim/checkpoint/slice_table.h"
#include "optim/checkpoint/step_directory.h"

namespace rz::optim::checkpoint {

namespace {

class Save {
 public:
  Save(FileSystem& files, const std::string& directory, const CheckpointInfo& info, std::span<const SliceToSave> slices,
       comm::Communicator& comm)
      : files_(files),
        directory_(directory),
        slices_(slices),
        comm_(comm),
        what_(fmt::format("saving step {} to {}", info.step, directory)) {
    manifest_.info = info;
    manifest_.info.world_size = comm.size();
  }

  SaveResult run(int keep) {
    plan(keep);
    id_ = broadcast_string(comm_, comm_.rank() == 0 ? make_run_id() : "");
    pending_.emplace(files_, directory_, step(), id_);
    try {
      make_folder();
      write_shard();
      exchange_digests();
      write_manifest();
      on_rank_0([&] { pending_->commit(); });
      verify_committed();
    } catch (...) {
      // Either all ranks are here, with one error, and nobody writes any more; or a rank was lost, and what its death
      // leaves behind is swept by the next save.
      if (comm_.rank() == 0) pending_->withdraw();
      throw;
    }
    return finish(keep);
  }

 private:
  int64_t step() const { return manifest_.info.step; }

  void on_rank_0(const std::function<void()>& work) { agree(comm_, comm_.rank() == 0 ? failure_of(work) : Failure{}, what_); }

  // What all ranks together would write, checked on every rank before anything is: all see the same tables.
  void plan(int keep) {
    std::string table, state;
    agree(comm_, failure_of([&] {
            RZ_CHECK(keep >= 1, "at least one checkpoint must be kept, not {}", keep);
            RZ_CHECK(step() >= 0 && manifest_.info.stage >= 0, "step {} and stage {} must not be negative", step(), manifest_.info.stage);
            std::vector<SliceRow> rows;
            for (const SliceToSave& slice : slices_) rows.push_back(to_row(slice));
            table = pack_rows(rows);
            state = encode_manifest(manifest_);  // no tensors yet: the state alone
          }),
          what_);
    std::vector<std::vector<SliceRow>> rows_of_ranks;
    for (const std::string& bytes : gather_strings(comm_, table)) rows_of_ranks.push_back(unpack_rows(bytes));
    manifest_.tensors = merge_rows(rows_of_ranks);
    for (StoredTensor& tensor : manifest_.tensors) check_coverage(tensor, what_);
    const auto states = gather_strings(comm_, fmt::format("{:016x}", digest_of(state)));
    for (size_t r = 1; r < states.size(); ++r)
      if (states[r] != states[0])
        throw Error(fmt::format("saving to {}: rank {} has another step, job, seed or state than rank 0", directory_, r));
    for (int r = 0; r < comm_.size(); ++r) manifest_.shards.push_back({shard_name(r, comm_.size()), 0, 0});
  }

  void make_folder() {
    on_rank_0([&] {
      files_.create_directories(directory_);
      sweep_notes_ = sweep(files_, directory_);
      pending_->create();
    });
  }

  void write_shard() {
    std::unique_ptr<ShardWriter> writer;
    uint64_t bytes = 0;
    for (const SliceToSave& slice : slices_) bytes += static_cast<uint64_t>(slice.end - slice.begin) * size_bytes(slice.dtype);
    run_in_rounds(comm_, bytes, what_, [&](uint64_t budget) {
      if (writer == nullptr)
        writer =
            std::make_unique<ShardWriter>(files_, pending_->tmp_path(), manifest_.shards[static_cast<size_t>(comm_.rank())].file, slices_);
      writer->step(budget);
    });
    manifest_.shards[static_cast<size_t>(comm_.rank())] = writer->stored();
    for (size_t i = 0; i < slices_.size(); ++i) {
      const SliceToSave& slice = slices_[i];
      if (slice.begin < slice.end) digests_[{slice.name, slice.begin}] = writer->slice_digests()[i];
    }
  }

  // Each rank sends its file's size and digest, then the digests of its ranges in the order of the manifest.
  void exchange_digests() {
    const int rank = comm_.rank();
    const StoredShard& own = manifest_.shards[static_cast<size_t>(rank)];
    std::vector<uint64_t> numbers{static_cast<uint64_t>(own.bytes), own.digest};
    for (const StoredTensor& tensor : manifest_.tensors)
      for (const StoredRange& range : tensor.ranges)
        if (range.shard == rank) numbers.push_back(digests_.at({tensor.name, range.begin}));
    const auto all = gather_strings(comm_, {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(uint64_t)});

    std::vector<size_t> taken(all.size(), 0);
    const auto next = [&](int from) {
      uint64_t number = 0;
      std::memcpy(&number, all[static_cast<size_t>(from)].data() + sizeof(number) * taken[static_cast<size_t>(from)]++, sizeof(number));
      return number;
    };
    for (int r = 0; r < comm_.size(); ++r) {
      StoredShard& shard = manifest_.shards[static_cast<size_t>(r)];
      shard.bytes = static_cast<int64_t>(next(r));
      shard.digest = next(r);
    }
    for (StoredTensor& tensor : manifest_.tensors)
      for (StoredRange& range : tensor.ranges) range.digest = next(range.shard);
  }

  void write_manifest() {
    on_rank_0([&] {
      manifest_bytes_ = encode_manifest(manifest_);
      File file = files_.create_file(pending_->tmp_path(), kManifestName);
      file.write(manifest_bytes_.data(), manifest_bytes_.size());
      file.sync();
      file.close();
      files_.sync_directory(pending_->tmp_path());
    });
  }

  // Reopens what was committed: the manifest on rank 0, its own shard on every rank.
  void verify_committed() {
    on_rank_0([&] {
      const std::string path = join(pending_->final_path(), kManifestName);
      if (read_manifest_bytes(files_, pending_->final_path()) != manifest_bytes_) throw Error(path + " does not hold what was written");
      decode_manifest(manifest_bytes_, path);
    });
    ShardVerifier verifier(files_, pending_->final_path(), manifest_, {comm_.rank()});
    run_in_rounds(comm_, verifier.total_bytes(), what_, [&](uint64_t budget) { verifier.step(budget); });
  }

  SaveResult finish(int keep) {
    SaveResult result;
    result.path = pending_->final_path();
    std::string lines;
    if (comm_.rank() == 0) {
      result.bytes = static_cast<int64_t>(manifest_bytes_.size());
      for (const std::string& note : sweep_notes_) lines += note + "\n";
      for (const std::string& note : retire(files_, directory_, step(), keep, id_)) lines += note + "\n";
    }
    comm_.broadcast(&result.bytes, 1, DType::i64, 0, {.name = "checkpoint"}).wait();
    for (const StoredShard& shard : manifest_.shards) result.bytes += shard.bytes;
    lines = broadcast_string(comm_, lines);
    for (size_t at = 0, end = 0; (end = lines.find('\n', at)) != std::string::npos; at = end + 1)
      result.notes.push_back(lines.substr(at, end - at));
    return result;
  }

  FileSystem& files_;
  const std::string& directory_;
  std::span<const SliceToSave> slices_;
  comm::Communicator& comm_;
  const std::string what_;
  Manifest manifest_;
  std::string id_;  // the same on all ranks
  std::optional<PendingStep> pending_;
  std::map<std::pair<std::string, int64_t>, uint64_t> digests_;  // of own ranges, by tensor and begin
  std::string manifest_bytes_;                                   // rank 0
  std::vector<std::string> sweep_notes_;
};

}  // namespace

void prepare_directory(FileSystem& files, const std::string& directory, comm::Communicator& comm) {
  const std::string what = "preparing the checkpoint directory " + directory;
  const auto as_config = [](Failure failure) {
    failure.is_config = true;
    return failure;
  };
  agree(comm, comm.rank() == 0 ? as_config(failure_of([&] { files.create_directories(directory); })) : Failure{}, what);
  const std::string id = broadcast_string(comm, comm.rank() == 0 ? make_run_id() : "");
  agree(comm, as_config(failure_of([&] {
          const std::string name = fmt::format(".probe-{}-{}", id, comm.rank());
          File probe = files.create_file(directory, name);
          probe.write("x", 1);
          probe.close();
          files.remove_file(join(directory, name));
        })),
        what);
}

SaveResult save(FileSystem& files, const std::string& directory, const CheckpointInfo& info, std::span<const SliceToSave> slices,
                comm::Communicator& comm, int keep) {
  return Save(files, directory, info, slices, comm).run(keep);
}

}  // namespace rz::optim::checkpoint
