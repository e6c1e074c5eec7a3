// A small model on ranks as threads, for the checkpoint tests: its values are a function of (tensor, element, salt), so that
// any rank can say what it should have read, whoever wrote it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "optim/checkpoint/checkpoint.h"
#include "runtime/core/random.h"
#include "tests/support/faulty_file_system.h"
#include "tests/support/ranks.h"

namespace rz::optim::checkpoint {

struct ModelTensor {
  std::string name;
  DType dtype;
  Shape shape;
};

// Scalar, empty, odd and single-element tensors, names that need escaping in JSON, every type.
inline std::vector<ModelTensor> small_model() {
  return {{"model.blocks.0.attn.q.weight", DType::f32, {7, 11}},
          {"model.bias", DType::bf16, {13}},
          {"model.half", DType::f16, {3, 1, 5}},
          {"model.scalar", DType::f64, {}},
          {"model.empty", DType::f32, {4, 0, 2}},
          {"model.one", DType::i64, {1}},
          {"model.odd \"bytes\" \\ \xc3\xa9", DType::u8, {3}},
          {"optimizer.m.blocks.0.attn.q.weight", DType::f32, {77}},
          {"optimizer.ids", DType::i32, {2, 2, 2, 2}}};
}

enum class Partition { even, rank_0, scattered };

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

// Each rank's pieces; together they cover every tensor exactly once.
inline std::vector<std::vector<Piece>> partition(const std::vector<ModelTensor>& model, Partition how, int ranks, uint64_t seed = 1) {
  std::vector<std::vector<Piece>> out(static_cast<size_t>(ranks));
  std::mt19937_64 random(seed);
  for (size_t t = 0; t < model.size(); ++t) {
    const int64_t numel = model[t].shape.numel();
    if (how == Partition::rank_0 || numel == 0) {
      out[0].push_back({t, 0, numel});
    } else if (how == Partition::even) {
      for (int r = 0; r < ranks; ++r) {
        const auto chunk = comm::chunk_of(static_cast<size_t>(numel), r, ranks);
        out[static_cast<size_t>(r)].push_back({t, static_cast<int64_t>(chunk.begin), static_cast<int64_t>(chunk.end)});
      }
    } else {
      for (int64_t at = 0; at < numel;) {
        const int64_t end = std::min(numel, at + 1 + static_cast<int64_t>(random() % 40));
        out[random() % out.size()].push_back({t, at, end});
        at = end;
      }
    }
  }
  return out;
}

inline void fill(const ModelTensor& tensor, int64_t begin, int64_t end, uint64_t salt, std::vector<std::byte>& bytes) {
  const size_t width = size_bytes(tensor.dtype);
  const Random random(salt, tensor.name);
  bytes.resize(static_cast<size_t>(end - begin) * width);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random.bits(static_cast<uint64_t>(begin) * width + i));
}

inline CheckpointInfo info_of(int64_t step, int64_t salt = 0) {
  CheckpointInfo info;
  info.step = step;
  info.stage = 2;
  info.seed = 0xfeedfacecafebeefu;
  info.data_cursor = static_cast<uint64_t>(step) * 8;
  info.job_text = fmt::format("name: \"job at {}\"\n", step);
  info.scalars = {{"loss_scale", 0.1 + static_cast<double>(step)}, {"tiny", 5e-324}};
  info.counters = {{"adam_step", step}, {"minus", -7}, {"salt", salt}};
  return info;
}

struct Outcome {
  std::vector<std::string> errors;  // by rank, empty where it went well
  CheckpointInfo info;
  SaveResult result;
  bool ok() const {
    return std::all_of(errors.begin(), errors.end(), [](const auto& e) { return e.empty(); });
  }
  // The error, which must be the same on all ranks.
  std::string error() const {
    for (const auto& e : errors) EXPECT_EQ(e, errors[0]);
    return errors[0];
  }
};

// Runs `work` on ranks as threads; exceptions are kept per rank, so that none ends the others' collectives early.
template <class Work>
Outcome on_ranks(int ranks, Work&& work) {
  Outcome outcome;
  outcome.errors.resize(static_cast<size_t>(ranks));
  test::run_on_ranks(ranks, [&](comm::Communicator& comm) {
    try {
      work(comm, outcome);
    } catch (const std::exception& e) {
      outcome.errors[static_cast<size_t>(comm.rank())] = e.what();
      EXPECT_NE(dynamic_cast<const Error*>(&e), nullptr) << "not an rz::Error: " << e.what();
    }
  });
  return outcome;
}

inline constexpr const char* kDirectory = "/run/checkpoint";

struct Job {
  std::vector<ModelTensor> model = small_model();
  int ranks = 2;
  Partition how = Partition::even;
  int keep = 2;
  std::string directory = kDirectory;
  int64_t salt = 0;  // another one makes other values of the same step
};

inline uint64_t values_key(int64_t step, int64_t salt) { return static_cast<uint64_t>(step * 1000 + salt); }

// One rank's part of saving a model whose values are those of (step, job.salt).
inline SaveResult save_on(comm::Communicator& comm, FileSystem& files, int64_t step, const Job& job) {
  const auto pieces = partition(job.model, job.how, comm.size(), static_cast<uint64_t>(step));
  std::deque<std::vector<std::byte>> data;
  std::vector<SliceToSave> slices;
  for (const Piece& p : pieces[static_cast<size_t>(comm.rank())]) {
    const ModelTensor& t = job.model[p.tensor];
    fill(t, p.begin, p.end, values_key(step, job.salt), data.emplace_back());
    slices.push_back({t.name, t.dtype, t.shape, p.begin, p.end, data.back().data()});
  }
  return save(files, job.directory, info_of(step, job.salt), slices, comm, job.keep);
}

// One rank's part of loading; compares every byte and all that belongs to the state with what was saved.
inline CheckpointInfo load_on(comm::Communicator& comm, FileSystem& files, std::optional<int64_t> step, const Job& job,
                              const LoadOptions& options = {}) {
  std::vector<Piece> own = partition(job.model, job.how, comm.size(), 77)[static_cast<size_t>(comm.rank())];
  // Ranks may ask for the same elements: everybody wants the first tensor whole, too.
  if (!job.model.empty()) own.push_back({0, 0, job.model[0].shape.numel()});
  std::deque<std::vector<std::byte>> data;
  std::vector<SliceToLoad> slices;
  for (const Piece& p : own) {
    const ModelTensor& t = job.model[p.tensor];
    data.emplace_back(static_cast<size_t>(p.end - p.begin) * size_bytes(t.dtype), std::byte{0xAA});
    slices.push_back({t.name, t.dtype, t.shape, p.begin, p.end, data.back().data()});
  }
  const CheckpointInfo info = load(files, job.directory, step, slices, comm, options);
  const int64_t salt = info.counters.at("salt");
  for (size_t i = 0; i < own.size(); ++i) {
    std::vector<std::byte> expected;
    fill(job.model[own[i].tensor], own[i].begin, own[i].end, values_key(info.step, salt), expected);
    EXPECT_TRUE(data[i] == expected) << job.model[own[i].tensor].name << " [" << own[i].begin << ", " << own[i].end << ") on rank "
                                     << comm.rank();
  }
  const CheckpointInfo saved = info_of(info.step, salt);
  EXPECT_EQ(info.job_text, saved.job_text);
  EXPECT_EQ(info.seed, saved.seed);
  EXPECT_EQ(info.data_cursor, saved.data_cursor);
  EXPECT_EQ(info.scalars, saved.scalars);
  EXPECT_EQ(info.counters, saved.counters);
  EXPECT_EQ(info.stage, saved.stage);
  return info;
}

inline Outcome save_step(FileSystem& files, int64_t step, const Job& job = {}) {
  return on_ranks(job.ranks, [&](comm::Communicator& comm, Outcome& outcome) {
    SaveResult result = save_on(comm, files, step, job);
    if (comm.rank() == 0) outcome.result = std::move(result);
  });
}

inline Outcome load_step(FileSystem& files, std::optional<int64_t> step = {}, const Job& job = {}, const LoadOptions& options = {}) {
  return on_ranks(job.ranks, [&](comm::Communicator& comm, Outcome& outcome) {
    CheckpointInfo info = load_on(comm, files, step, job, options);
    if (comm.rank() == 0) outcome.info = std::move(info);
  });
}

}  // namespace rz::optim::checkpoint
