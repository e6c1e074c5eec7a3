// Where the parameters of a bucket lie in its flat buffers (decision D8), and how parameters are dealt into buckets.
//
// * A layout depends on the model (with its element type), the number of ranks and the bucket size alone: never on the stage.
// * Each parameter starts at a multiple of kAlignElements, and each shard is a multiple of it too; what lies between is
//   padding, always zero. Shard r of N is [r, r+1) * padded / N, the same boundaries as the ring's chunks.
// Pure data, no memory: the plan of a model can be made without allocating it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/nn/module.h"

namespace rz::optim {

inline constexpr int64_t kAlignElements = 16;  // 64 bytes of float32, 32 of the 16-bit types

// Elements [begin, end) of a flat buffer.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t length() const { return end - begin; }
  bool operator==(const Range&) const = default;
};
Range intersect(Range a, Range b);

struct FlatEntry {
  nn::Parameter* parameter = nullptr;
  int64_t offset = 0;  // elements
  Range range() const { return {offset, offset + parameter->numel()}; }
};

class FlatLayout {
 public:
  FlatLayout(const std::vector<nn::Parameter*>& parameters, int ranks);

  const std::vector<FlatEntry>& entries() const { return entries_; }
  int64_t payload_elements() const { return payload_; }  // without padding
  int64_t padded_elements() const { return padded_; }
  int64_t shard_elements() const { return padded_ / ranks_; }
  Range shard(int rank) const { return {rank * shard_elements(), (rank + 1) * shard_elements()}; }
  Range whole() const { return {0, padded_}; }
  // The gaps between parameters and after the last.
  const std::vector<Range>& padding() const { return padding_; }

 private:
  std::vector<FlatEntry> entries_;
  std::vector<Range> padding_;
  int64_t payload_ = 0;
  int64_t padded_ = 0;
  int ranks_;
};

// One bucket: parameters that are gathered and reduced together.
struct BucketPlan {
  std::vector<nn::Parameter*> parameters;
  bool outermost = false;  // of the outermost unit: stays gathered from the start of a step to the end of its backward
  bool trainable = true;
  std::string name;        // "blocks.3", "blocks.0 .. blocks.2", "blocks.3 part 1 of 2", "outermost", ...
};

// Deals a model's parameters into buckets, in registration order, outermost unit first. bucket_bytes = 0: a bucket per unit;
// otherwise a bucket is closed when the next parameter would make it larger than that: small units merge, large ones are cut, and
// parts of a cut unit share a bucket with no other.
// Frozen parameters have buckets of their own.
std::vector<BucketPlan> plan_buckets(nn::Module& model, int64_t bucket_bytes);

}  // namespace rz::optim
