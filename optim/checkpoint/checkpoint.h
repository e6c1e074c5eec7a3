// Checkpoints: sharded files and a manifest, written so that a crash at any moment leaves the last whole one loadable, and
// read back by any number of ranks with any other partition of the same tensors (docs/checkpoint.md has the protocol).
//
// 1. A directory holds one folder per kept step, step-N, with shard-RRRRR-of-NNNNN.safetensors per rank and manifest.pb.
// 2. A folder appears under its final name by one rename, after all its bytes are on stable storage.
// 3. Nothing older is touched before the new one was reopened and verified.
// 4. Never a second copy of the model: data is written from and read into the caller's memory; verification reads through
//    one buffer of kBufferBytes per rank (category workspace).
// Does not know models or optimizers: only names, types, shapes, ranges and bytes.
// COLLECTIVE functions are called by every rank of the communicator; a failure on one is the same Error on all.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "optim/checkpoint/file_system.h"
#include "runtime/core/dtype.h"
#include "runtime/core/shape.h"

namespace rz::optim::checkpoint {

inline constexpr size_t kBufferBytes = size_t{4} << 20;

// Elements [begin, end) of the flattened tensor `name`, which this rank contributes. Over all ranks the slices of a tensor
// cover it exactly once. An empty slice (begin == end, data may be null) declares the tensor without contributing.
struct SliceToSave {
  std::string name;
  DType dtype = DType::f32;
  Shape full_shape;
  int64_t begin = 0;
  int64_t end = 0;
  const void* data = nullptr;
};

// Elements [begin, end) of the flattened tensor `name`, which this rank wants in `data`. Ranks may overlap.
struct SliceToLoad {
  std::string name;
  DType dtype = DType::f32;
  Shape full_shape;
  int64_t begin = 0;
  int64_t end = 0;
  void* data = nullptr;
};

// What a checkpoint says beside its tensors; the same on every rank.
struct CheckpointInfo {
  int64_t step = 0;    // optimizer steps done
  int world_size = 0;  // ranks that wrote it; set by save()
  int stage = 0;       // sharding stage of the run that wrote it
  uint64_t seed = 0;
  uint64_t data_cursor = 0;                 // global samples consumed
  std::string job_text;                     // the effective job
  std::map<std::string, double> scalars;    // training state that is a number, kept to the bit
  std::map<std::string, int64_t> counters;  // training state that is an integer

  // Set by load() and inspect().
  uint64_t job_digest = 0;         // xxh64 of job_text
  std::string path;                // the step's folder
  std::vector<std::string> notes;  // what a user should be told, e.g. that a newer checkpoint was damaged
};

struct SaveResult {
  std::string path;                // the step's folder
  int64_t bytes = 0;               // all ranks' shards and the manifest
  std::vector<std::string> notes;  // what a user should be told, e.g. that an old checkpoint could not be removed
};

// COLLECTIVE, before the first step: makes `directory` where it is missing and proves that every rank can write there.
// ConfigError naming rank, path and errno text otherwise.
void prepare_directory(FileSystem& files, const std::string& directory, comm::Communicator& comm);

// COLLECTIVE. Writes directory/step-<info.step>, replacing one of the same step only when the new one is whole, then
// removes all but the newest `keep` (>= 1) steps. Checkpoints of later steps (left by a run that was continued from an
// earlier one) are set aside under another name, so that they are no longer the newest.
// Error on every rank, naming rank, path and errno text, if any rank failed; then the directory is as it was before.
// Error too if slices overlap, leave holes, or disagree in type or shape: before anything is written.
SaveResult save(FileSystem& files, const std::string& directory, const CheckpointInfo& info, std::span<const SliceToSave> slices,
                comm::Communicator& comm, int keep = 2);

struct LoadOptions {
  // Tensors of the checkpoint whose name starts with one of these need not be asked for ("optimizer." to read a model alone).
  std::vector<std::string> skip_prefixes;
};

// COLLECTIVE. Verifies a checkpoint (structure, sizes, every digest, coverage), compares its tensors with those that all
// ranks together ask for, and fills the slices; data is written only after all of that has passed.
// With `step`: that step or an error. Without: the newest step that verifies; info.notes says which newer ones did not and why.
// ConfigError: no such checkpoint; another model (all differences listed). Error: damaged. The same on every rank.
CheckpointInfo load(FileSystem& files, const std::string& directory, std::optional<int64_t> step, std::span<const SliceToLoad> slices,
                    comm::Communicator& comm, const LoadOptions& options = {});

// Steps that have a folder in `directory`, ascending; empty when there is no directory. Does not verify them.
std::vector<int64_t> list_steps(FileSystem& files, const std::string& directory);

struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  int64_t pieces = 0;  // ranges that it is stored in
};

struct Inspection {
  CheckpointInfo info;
  std::vector<TensorEntry> tensors;  // by name
  int64_t bytes = 0;                 // of all shards
};

// Reads the manifest of one step's folder; not the tensors. Error when it is missing or damaged, ConfigError when of a newer format.
Inspection inspect(FileSystem& files, const std::string& step_path);

// Reads all of one step's folder and compares sizes, structure and digests; Error naming file and tensor. One rank's work.
void verify(FileSystem& files, const std::string& step_path);

}  // namespace rz::optim::checkpoint
