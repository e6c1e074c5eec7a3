#include "optim/shard/flat_layout.h"

#include <algorithm>
#include <map>
#include <set>

namespace rz::optim {

namespace {
int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
}  // namespace

Range intersect(Range a, Range b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

FlatLayout::FlatLayout(const std::vector<nn::Parameter*>& parameters, int ranks) : ranks_(ranks) {
  RZ_CHECK(ranks >= 1, "a layout needs at least one rank, not {}", ranks);
  int64_t end = 0;
  for (nn::Parameter* p : parameters) {
    const int64_t offset = round_up(end, kAlignElements);
    if (offset > end) padding_.push_back({end, offset});
    entries_.push_back({p, offset});
    end = offset + p->numel();
    payload_ += p->numel();
  }
  padded_ = round_up(end, kAlignElements * ranks);
  if (padded_ > end) padding_.push_back({end, padded_});
}

std::vector<BucketPlan> plan_buckets(nn::Module& model, int64_t bucket_bytes) {
  RZ_CHECK(bucket_bytes >= 0, "a bucket of {} bytes", bucket_bytes);
  struct Piece {
    nn::Parameter* parameter;
    std::string unit;
    bool outermost;
  };
  std::vector<Piece> in_units;
  std::set<const nn::Parameter*> claimed;
  for (const nn::Unit& unit : model.units()) {
    for (nn::Parameter* p : unit.module->parameters()) {
      RZ_CHECK(claimed.insert(p).second, "parameter '{}' belongs to two units", p->name);
      in_units.push_back({p, unit.name, false});
    }
  }
  std::vector<Piece> ordered;
  for (nn::Parameter* p : model.parameters())
    if (!claimed.contains(p)) ordered.push_back({p, "outermost", true});
  ordered.insert(ordered.end(), in_units.begin(), in_units.end());

  const auto bytes_of = [](const Piece& piece) {
    return piece.parameter->numel() * static_cast<int64_t>(size_bytes(piece.parameter->value.dtype()));
  };
  std::map<std::string, int64_t> unit_bytes;
  for (const Piece& piece : ordered) unit_bytes[piece.unit] += bytes_of(piece);
  // A bucket of two units is needed by both and complete with the second only: worth it for small units, not for pieces of large ones.
  const auto merge = [&](const std::string& a, const std::string& b) { return unit_bytes[a] <= bucket_bytes && unit_bytes[b] <= bucket_bytes; };

  std::vector<BucketPlan> buckets;
  for (const bool trainable : {true, false}) {
    const size_t first = buckets.size();
    int64_t bytes = 0;
    std::string last_unit;
    for (const Piece& piece : ordered) {
      if (piece.parameter->trainable != trainable) continue;
      const int64_t more = bytes_of(piece);
      const bool fresh = buckets.size() == first || buckets.back().outermost != piece.outermost ||
                         (piece.unit != last_unit && !merge(piece.unit, last_unit)) || (bucket_bytes > 0 && bytes + more > bucket_bytes);
      if (fresh) {
        buckets.push_back({{}, piece.outermost, trainable, piece.unit});
        bytes = 0;
      } else if (piece.unit != last_unit) {
        buckets.back().name = buckets.back().name.substr(0, buckets.back().name.find(" .. ")) + " .. " + piece.unit;
      }
      buckets.back().parameters.push_back(piece.parameter);
      bytes += more;
      last_unit = piece.unit;
    }
  }
  // Parts of one unit are told apart.
  std::map<std::string, int> parts, named;
  for (const BucketPlan& b : buckets) ++parts[b.name];
  for (BucketPlan& b : buckets)
    if (const int of = parts[b.name]; of > 1) b.name = fmt::format("{} part {} of {}", b.name, ++named[b.name], of);
  return buckets;
}

}  // namespace rz::optim
