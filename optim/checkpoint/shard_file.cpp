#include "optim/checkpoint/shard_file.h"

#include <algorithm>

#include "optim/checkpoint/text.h"

namespace rz::optim::checkpoint {

namespace {

uint64_t bytes_of(DType dtype, int64_t elements) { return static_cast<uint64_t>(elements) * size_bytes(dtype); }

// A range that is the whole tensor keeps its shape, so that a checkpoint of one rank is a plain safetensors model file.
Shape entry_shape(const Shape& full, int64_t begin, int64_t end) { return begin == 0 && end == full.numel() ? full : Shape{end - begin}; }

}  // namespace

ShardWriter::ShardWriter(FileSystem& files, const std::string& directory, const std::string& name, std::span<const SliceToSave> slices)
    : slices_(slices), file_(files.create_file(directory, name)), slice_digests_(slices.size(), 0) {
  std::unordered_map<std::string, size_t> index;
  for (size_t i = 0; i < slices.size(); ++i) {
    const SliceToSave& s = slices[i];
    if (s.begin == s.end) continue;
    safetensors::Entry entry;
    entry.name = entry_name(s.name, s.full_shape, s.begin, s.end);
    entry.dtype = s.dtype;
    entry.shape = entry_shape(s.full_shape, s.begin, s.end);
    index[entry.name] = i;
    header_.entries.push_back(std::move(entry));
  }
  const std::string start = safetensors::make_header(header_);
  for (const auto& entry : header_.entries) order_.push_back(index.at(entry.name));
  stored_.file = name;
  append(start.data(), start.size());
}

void ShardWriter::append(const void* data, size_t bytes) {
  file_digest_.add(data, bytes);
  file_.write(data, bytes);
  stored_.bytes += static_cast<int64_t>(bytes);
}

bool ShardWriter::step(uint64_t budget) {
  if (done_) return true;
  while (budget > 0 && next_ < order_.size()) {
    const SliceToSave& slice = slices_[order_[next_]];
    const uint64_t total = bytes_of(slice.dtype, slice.end - slice.begin);
    const auto bytes = static_cast<size_t>(std::min({total - written_, budget, uint64_t{kBufferBytes}}));
    const std::byte* from = static_cast<const std::byte*>(slice.data) + written_;
    // In portions that stay in the cache between the digests and the copy into the page cache.
    slice_digest_.add(from, bytes);
    append(from, bytes);
    written_ += bytes;
    budget -= bytes;
    if (written_ < total) continue;
    slice_digests_[order_[next_]] = slice_digest_.value();
    slice_digest_.reset();
    written_ = 0;
    ++next_;
  }
  file_.sync();
  if (next_ < order_.size()) return false;
  file_.close();
  stored_.digest = file_digest_.value();
  done_ = true;
  return true;
}

std::vector<std::vector<RangeRef>> ranges_by_shard(const Manifest& manifest) {
  std::vector<std::vector<RangeRef>> out(manifest.shards.size());
  for (size_t t = 0; t < manifest.tensors.size(); ++t) {
    const auto& ranges = manifest.tensors[t].ranges;
    for (size_t r = 0; r < ranges.size(); ++r) out.at(static_cast<size_t>(ranges[r].shard)).push_back({t, r});
  }
  return out;
}

OpenShard::OpenShard(FileSystem& files, const std::string& step_path, const Manifest& manifest, int shard, std::span<const RangeRef> ranges)
    : file_(files.open_file(step_path, manifest.shards.at(static_cast<size_t>(shard)).file)) {
  const StoredShard& stored = manifest.shards[static_cast<size_t>(shard)];
  if (const uint64_t size = file_.size_bytes(); size != static_cast<uint64_t>(stored.bytes))
    throw Error(fmt::format("{} is damaged: {} bytes long instead of {}", file_.path(), size, stored.bytes));
  header_ = safetensors::read_header(file_);
  for (const auto& entry : header_.entries) entries_.emplace(entry.name, &entry);
  for (const RangeRef& ref : ranges) {
    const StoredTensor& tensor = manifest.tensors[ref.tensor];
    const StoredRange& range = tensor.ranges[ref.range];
    std::string name = entry_name(tensor.name, tensor.shape, range.begin, range.end);
    const auto found = entries_.find(name);
    const char* problem = found == entries_.end()                                                     ? "is missing"
                          : found->second->dtype != tensor.dtype                                      ? "has another type"
                          : found->second->shape != entry_shape(tensor.shape, range.begin, range.end) ? "has another shape"
                                                                                                      : nullptr;
    if (problem != nullptr) throw Error(fmt::format("{} is damaged: {} {}", file_.path(), printable(name), problem));
    ranges_.emplace(std::move(name), ref);
  }
  if (ranges_.size() != ranges.size() || entries_.size() != ranges.size())
    throw Error(fmt::format("{} is damaged: {} entries instead of {}", file_.path(), entries_.size(), ranges.size()));
}

uint64_t OpenShard::offset_of(const StoredTensor& tensor, const StoredRange& range) const {
  return header_.data_offset + entries_.at(entry_name(tensor.name, tensor.shape, range.begin, range.end))->begin;
}

ShardVerifier::ShardVerifier(FileSystem& files, std::string step_path, const Manifest& manifest, std::vector<int> shards)
    : files_(files),
      step_path_(std::move(step_path)),
      manifest_(manifest),
      shards_(std::move(shards)),
      ranges_(ranges_by_shard(manifest)) {}

ShardVerifier::~ShardVerifier() = default;

uint64_t ShardVerifier::total_bytes() const {
  uint64_t total = 0;
  for (const int shard : shards_) total += static_cast<uint64_t>(manifest_.shards[static_cast<size_t>(shard)].bytes);
  return total;
}

void ShardVerifier::open_next() {
  const int shard = shards_[next_];
  open_ = std::make_unique<OpenShard>(files_, step_path_, manifest_, shard, ranges_[static_cast<size_t>(shard)]);
  if (buffer_ == nullptr) buffer_ = Storage::make(kBufferBytes, Category::workspace, "checkpoint: verification buffer");
  at_ = 0;
  entry_ = 0;
  file_digest_.reset();
  entry_digest_.reset();
}

void ShardVerifier::check_entry(const safetensors::Entry& entry) const {
  const RangeRef& ref = open_->range_of(entry);
  const StoredTensor& tensor = manifest_.tensors[ref.tensor];
  const StoredRange& range = tensor.ranges[ref.range];
  if (entry_digest_.value() != range.digest)
    throw Error(fmt::format("{} is damaged: the digest of elements [{}, {}) of tensor {} does not match", open_->file().path(), range.begin,
                            range.end, printable(tensor.name)));
}

// The next bytes of the open shard. Its entries tile the data, so each byte is of the header or of the current entry.
void ShardVerifier::add(const std::byte* data, size_t bytes) {
  file_digest_.add(data, bytes);
  const auto& header = open_->header();
  const auto skip = static_cast<size_t>(std::min<uint64_t>(bytes, at_ < header.data_offset ? header.data_offset - at_ : 0));
  at_ += bytes;
  data += skip;
  bytes -= skip;
  while (bytes > 0) {
    const auto& entry = header.entries.at(entry_);
    const uint64_t start = at_ - bytes - header.data_offset;
    const auto part = static_cast<size_t>(std::min<uint64_t>(bytes, entry.end - start));
    entry_digest_.add(data, part);
    data += part;
    bytes -= part;
    if (start + part < entry.end) continue;
    check_entry(entry);
    entry_digest_.reset();
    ++entry_;
  }
}

bool ShardVerifier::step(uint64_t budget) {
  while (budget > 0 && next_ < shards_.size()) {
    if (open_ == nullptr) open_next();
    const StoredShard& stored = manifest_.shards[static_cast<size_t>(shards_[next_])];
    const uint64_t left = static_cast<uint64_t>(stored.bytes) - at_;
    const auto bytes = static_cast<size_t>(std::min({left, budget, uint64_t{kBufferBytes}}));
    open_->file().read_at(at_, buffer_->data(), bytes);
    add(buffer_->data(), bytes);
    budget -= bytes;
    if (bytes < left) continue;
    if (file_digest_.value() != stored.digest)
      throw Error(fmt::format("{} is damaged: its digest does not match, though those of its tensors do", open_->file().path()));
    open_.reset();
    ++next_;
  }
  return next_ == shards_.size();
}

SliceReader::SliceReader(FileSystem& files, std::string step_path, const Manifest& manifest, std::span<const SliceToLoad> slices)
    : files_(files), step_path_(std::move(step_path)), manifest_(manifest), ranges_(ranges_by_shard(manifest)) {
  for (const SliceToLoad& slice : slices) {
    const auto tensor = std::lower_bound(manifest.tensors.begin(), manifest.tensors.end(), slice.name,
                                         [](const StoredTensor& t, const std::string& name) { return t.name < name; });
    RZ_CHECK(tensor != manifest.tensors.end() && tensor->name == slice.name, "{} is not in the checkpoint", printable(slice.name));
    // The first range that ends behind the slice's begin; ranges are ascending and tile the tensor.
    auto range =
        std::partition_point(tensor->ranges.begin(), tensor->ranges.end(), [&](const StoredRange& r) { return r.end <= slice.begin; });
    for (; range != tensor->ranges.end() && range->begin < slice.end; ++range) {
      const int64_t begin = std::max(range->begin, slice.begin), end = std::min(range->end, slice.end);
      if (begin >= end) continue;
      Extent extent;
      extent.shard = range->shard;
      extent.range = {static_cast<size_t>(tensor - manifest.tensors.begin()), static_cast<size_t>(range - tensor->ranges.begin())};
      extent.skip = bytes_of(slice.dtype, begin - range->begin);
      extent.bytes = bytes_of(slice.dtype, end - begin);
      extent.to = static_cast<std::byte*>(slice.data) + bytes_of(slice.dtype, begin - slice.begin);
      total_bytes_ += extent.bytes;
      extents_.push_back(extent);
    }
  }
  std::stable_sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) { return a.shard < b.shard; });
}

bool SliceReader::step(uint64_t budget) {
  while (budget > 0 && next_ < extents_.size()) {
    const Extent& extent = extents_[next_];
    if (open_ == nullptr || open_shard_ != extent.shard) {
      open_.reset();
      open_ = std::make_unique<OpenShard>(files_, step_path_, manifest_, extent.shard, ranges_[static_cast<size_t>(extent.shard)]);
      open_shard_ = extent.shard;
    }
    const StoredTensor& tensor = manifest_.tensors[extent.range.tensor];
    const uint64_t offset = open_->offset_of(tensor, tensor.ranges[extent.range.range]) + extent.skip;
    const auto bytes = static_cast<size_t>(std::min(extent.bytes - read_, budget));
    open_->file().read_at(offset + read_, extent.to + read_, bytes);
    read_ += bytes;
    budget -= bytes;
    if (read_ < extent.bytes) continue;
    read_ = 0;
    ++next_;
  }
  return next_ == extents_.size();
}

void check_no_extra_shards(FileSystem& files, const std::string& step_path, const Manifest& manifest) {
  for (const auto& entry : files.list(step_path)) {
    if (!entry.name.ends_with(".safetensors")) continue;
    const bool known =
        std::any_of(manifest.shards.begin(), manifest.shards.end(), [&](const StoredShard& shard) { return shard.file == entry.name; });
    if (!known) throw Error(fmt::format("{} does not belong to this checkpoint", join(step_path, printable(entry.name))));
  }
}

}  // namespace rz::optim::checkpoint
