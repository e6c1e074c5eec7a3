// The tables that ranks exchange about their slices, and what they add up to. Local; the exchange itself is agreement.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "optim/checkpoint/checkpoint.h"
#include "optim/checkpoint/manifest.h"

namespace rz::optim::checkpoint {

// A slice without its data.
struct SliceRow {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  int64_t begin = 0;
  int64_t end = 0;
};

// Throws Error unless the slice lies in its tensor and has data where it has elements.
template <class Slice>
SliceRow to_row(const Slice& slice);

std::string pack_rows(std::span<const SliceRow> rows);
std::vector<SliceRow> unpack_rows(std::string_view bytes);

// The tensors that all ranks' rows (by rank) speak of, by name, each with its ranges (shard = rank, digests 0) in element
// order. Throws Error naming both ranks where they disagree in type or shape.
std::vector<StoredTensor> merge_rows(const std::vector<std::vector<SliceRow>>& rows_of_ranks);

// Every difference between what the checkpoint at `path` holds and what was asked for, one line each; empty if none.
std::string differences(const Manifest& manifest, const std::vector<StoredTensor>& wanted, const std::vector<std::string>& skip_prefixes);

}  // namespace rz::optim::checkpoint
