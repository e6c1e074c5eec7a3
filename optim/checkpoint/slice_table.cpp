#include "optim/checkpoint/slice_table.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "optim/checkpoint/text.h"

namespace rz::optim::checkpoint {

namespace {

void put(std::string& out, int64_t value) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); }

// Reads what pack_rows wrote. The bytes come from another rank of this program: a mismatch is a bug, not input.
class Unpacker {
 public:
  explicit Unpacker(std::string_view bytes) : rest_(bytes) {}
  bool done() const { return rest_.empty(); }
  std::string_view text(size_t length) {
    RZ_CHECK(length <= rest_.size(), "a slice table is cut short");
    const std::string_view out = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return out;
  }
  int64_t number() {
    int64_t value = 0;
    std::memcpy(&value, text(sizeof(value)).data(), sizeof(value));
    return value;
  }

 private:
  std::string_view rest_;
};

std::string type_and_shape(const StoredTensor& tensor) { return fmt::format("{}{}", name(tensor.dtype), tensor.shape.str()); }

}  // namespace

template <class Slice>
SliceRow to_row(const Slice& slice) {
  RZ_CHECK(!slice.name.empty(), "a slice has no name");
  const int64_t numel = slice.full_shape.numel();
  RZ_CHECK(0 <= slice.begin && slice.begin <= slice.end && slice.end <= numel, "slice [{}, {}) of {} is not within its {} elements",
           slice.begin, slice.end, printable(slice.name), numel);
  RZ_CHECK(slice.data != nullptr || slice.begin == slice.end, "slice [{}, {}) of {} has no data", slice.begin, slice.end,
           printable(slice.name));
  checked_multiply(numel, static_cast<int64_t>(size_bytes(slice.dtype)), "bytes of " + printable(slice.name));
  return {slice.name, slice.dtype, slice.full_shape, slice.begin, slice.end};
}

template SliceRow to_row(const SliceToSave&);
template SliceRow to_row(const SliceToLoad&);

std::string pack_rows(std::span<const SliceRow> rows) {
  std::string out;
  for (const SliceRow& row : rows) {
    put(out, static_cast<int64_t>(row.name.size()));
    out += row.name;
    put(out, static_cast<int64_t>(row.dtype));
    put(out, row.shape.rank());
    for (const int64_t extent : row.shape.extents()) put(out, extent);
    put(out, row.begin);
    put(out, row.end);
  }
  return out;
}

std::vector<SliceRow> unpack_rows(std::string_view bytes) {
  std::vector<SliceRow> rows;
  Unpacker from(bytes);
  while (!from.done()) {
    SliceRow row;
    row.name = from.text(static_cast<size_t>(from.number()));
    row.dtype = static_cast<DType>(from.number());
    std::vector<int64_t> extents(static_cast<size_t>(from.number()));
    for (int64_t& extent : extents) extent = from.number();
    row.shape = Shape(std::span<const int64_t>(extents));
    row.begin = from.number();
    row.end = from.number();
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<StoredTensor> merge_rows(const std::vector<std::vector<SliceRow>>& rows_of_ranks) {
  std::map<std::string_view, std::pair<StoredTensor, int>> merged;  // with the rank that named it first
  for (size_t r = 0; r < rows_of_ranks.size(); ++r) {
    const int rank = static_cast<int>(r);
    for (const SliceRow& row : rows_of_ranks[r]) {
      const auto [at, is_new] = merged.try_emplace(row.name, StoredTensor{row.name, row.dtype, row.shape, {}}, rank);
      auto& [tensor, first_rank] = at->second;
      if (!is_new && (tensor.dtype != row.dtype || tensor.shape != row.shape))
        throw Error(fmt::format("ranks disagree on tensor {}: {} on rank {}, {}{} on rank {}", printable(row.name), type_and_shape(tensor),
                                first_rank, name(row.dtype), row.shape.str(), rank));
      if (row.begin < row.end) tensor.ranges.push_back({rank, row.begin, row.end, 0});
    }
  }
  std::vector<StoredTensor> tensors;
  tensors.reserve(merged.size());
  for (auto& [name, tensor_and_rank] : merged) {
    auto& ranges = tensor_and_rank.first.ranges;
    std::sort(ranges.begin(), ranges.end(), [](const StoredRange& a, const StoredRange& b) { return a.begin < b.begin; });
    tensors.push_back(std::move(tensor_and_rank.first));
  }
  return tensors;
}

std::string differences(const Manifest& manifest, const std::vector<StoredTensor>& wanted, const std::vector<std::string>& skip_prefixes) {
  std::string text;
  const auto skipped = [&](const std::string& name) {
    return std::any_of(skip_prefixes.begin(), skip_prefixes.end(), [&](const std::string& prefix) { return name.starts_with(prefix); });
  };
  // Both lists are sorted by name: one walk finds what only one of them has.
  auto have = manifest.tensors.begin();
  auto want = wanted.begin();
  while (have != manifest.tensors.end() || want != wanted.end()) {
    if (want == wanted.end() || (have != manifest.tensors.end() && have->name < want->name)) {
      if (!skipped(have->name)) text += fmt::format("\n  {} {} is in the checkpoint only", printable(have->name), type_and_shape(*have));
      ++have;
    } else if (have == manifest.tensors.end() || want->name < have->name) {
      text += fmt::format("\n  {} {} is in the model only", printable(want->name), type_and_shape(*want));
      ++want;
    } else {
      if (have->dtype != want->dtype || have->shape != want->shape)
        text += fmt::format("\n  {} is {} in the checkpoint, {} in the model", printable(have->name), type_and_shape(*have),
                            type_and_shape(*want));
      ++have, ++want;
    }
  }
  return text;
}

}  // namespace rz::optim::checkpoint
