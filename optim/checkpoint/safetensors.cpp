#include "optim/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <tuple>

#include "optim/checkpoint/text.h"

namespace rz::optim::checkpoint::safetensors {

static_assert(std::endian::native == std::endian::little, "tensor bytes are stored little-endian");

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kDataAlignment = 64;
constexpr std::string_view kMetadata = "__metadata__";

constexpr std::pair<DType, std::string_view> kTypes[] = {
    {DType::f32, "F32"}, {DType::bf16, "BF16"}, {DType::f16, "F16"}, {DType::f64, "F64"},
    {DType::i32, "I32"}, {DType::i64, "I64"},   {DType::u8, "U8"},
};

std::string_view type_text(DType t) {
  for (const auto& [dtype, text] : kTypes)
    if (dtype == t) return text;
  return "";
}

// The header as a stream of JSON events. A document tree would keep only the last of two equal names, so the events are
// consumed directly: the places where a value may stand are few, and everything else is an error with a sentence.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() override { return fail("null"); }
  bool boolean(bool) override { return fail("a boolean"); }
  bool number_integer(number_integer_t value) override { return fail(fmt::format("the negative number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override { return fail("the number " + printable(text)); }
  bool binary(binary_t&) override { return fail("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return fail(fmt::format("the extent {}", value));
      if (extents_.size() == static_cast<size_t>(Shape::kMaxRank)) return fail(fmt::format("more than {} extents", Shape::kMaxRank));
      extents_.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::offsets) {
      if (offsets_.size() == 2) return fail("a third offset");
      offsets_.push_back(value);
      return true;
    }
    return fail(fmt::format("the number {}", value));
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata) {
      metadata[key_] = text;
      return true;
    }
    if (place_ != Place::entry || field_ != "dtype") return fail("the text " + printable(text));
    for (const auto& [dtype, name] : kTypes) {
      if (name != text) continue;
      entry_.dtype = dtype;
      return true;
    }
    return fail("the unknown dtype " + printable(text));
  }

  bool start_object(size_t) override {
    if (place_ == Place::start) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = key_ == kMetadata ? Place::metadata : Place::entry;
      if (place_ == Place::entry) begin_entry();
    } else {
      return fail("an object");
    }
    return true;
  }

  bool key(string_t& text) override {
    if (place_ == Place::top) {
      key_ = text;
      return names_.insert(text).second || stop("the name " + printable(text) + " appears twice");
    }
    if (place_ == Place::metadata) {
      key_ = text;
      return !metadata.contains(text) || stop("the metadata " + printable(text) + " appears twice");
    }
    field_ = text;
    if (text != "dtype" && text != "shape" && text != "data_offsets") return stop(context() + " has the unknown field " + printable(text));
    return fields_.insert(text).second || stop(context() + " has " + text + " twice");
  }

  bool end_object() override {
    if (place_ == Place::entry) {
      place_ = Place::top;
      return finish_entry();
    }
    place_ = place_ == Place::metadata ? Place::top : Place::end;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::entry && field_ == "shape") {
      place_ = Place::shape;
    } else if (place_ == Place::entry && field_ == "data_offsets") {
      place_ = Place::offsets;
    } else {
      return fail("an array");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return stop(fmt::format("is not JSON at byte {} of the header", position));
  }

 private:
  enum class Place { start, top, metadata, entry, shape, offsets, end };

  bool stop(std::string text) {
    if (problem.empty()) problem = std::move(text);
    return false;
  }
  bool fail(const std::string& found) { return stop(fmt::format("{} has {} where the format has none", context(), found)); }
  std::string context() const {
    if (place_ == Place::start || place_ == Place::top) return names_.empty() ? "the header" : "the value of " + printable(key_);
    if (place_ == Place::metadata) return "the metadata";
    return printable(entry_.name) + (field_.empty() ? "" : ", field " + field_ + ",");
  }

  void begin_entry() {
    entry_ = {};
    entry_.name = key_;
    field_.clear();
    fields_.clear();
    extents_.clear();
    offsets_.clear();
  }

  bool finish_entry() {
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!fields_.contains(field)) return stop(fmt::format("{} has no {}", printable(entry_.name), field));
    if (offsets_.size() != 2) return stop(printable(entry_.name) + " needs two data offsets");
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    try {
      entry_.shape = Shape(std::span<const int64_t>(extents_));
    } catch (const Error&) {
      return stop(printable(entry_.name) + " has a shape whose element count overflows");
    }
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(entry_.shape.numel()), size_bytes(entry_.dtype), &bytes))
      return stop(printable(entry_.name) + " has a shape whose byte count overflows");
    if (entry_.begin > entry_.end || entry_.end - entry_.begin != bytes)
      return stop(
          fmt::format("{} has {} bytes by its shape, but data offsets [{}, {})", printable(entry_.name), bytes, entry_.begin, entry_.end));
    entries.push_back(std::move(entry_));
    return true;
  }

  Place place_ = Place::start;
  std::string key_;    // of the top level or of the metadata
  std::string field_;  // of an entry
  std::set<std::string> names_;
  std::set<std::string> fields_;
  Entry entry_;
  std::vector<int64_t> extents_;
  std::vector<uint64_t> offsets_;
};

// Entries in the order of their data; they must tile [0, data_bytes).
void check_tiling(std::vector<Entry>& entries, uint64_t data_bytes, const std::string& what) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name); });
  uint64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at)
      throw Error(
          fmt::format("{}: the data of {} begin at byte {}, not where the former end, at {}", what, printable(e.name), e.begin, at));
    at = e.end;
  }
  if (at != data_bytes) throw Error(fmt::format("{}: the tensors need {} bytes of data, but the file has {}", what, at, data_bytes));
}

}  // namespace

const Entry* Header::find(std::string_view name) const {
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

std::string make_header(Header& header) {
  std::sort(header.entries.begin(), header.entries.end(), [](const Entry& a, const Entry& b) {
    const size_t wide_a = size_bytes(a.dtype), wide_b = size_bytes(b.dtype);
    return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
  });
  std::set<std::string_view> names{kMetadata};
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!header.metadata.empty()) root[std::string(kMetadata)] = header.metadata;
  uint64_t at = 0;
  std::string json;
  for (Entry& e : header.entries) {
    RZ_CHECK(names.insert(e.name).second, "a safetensors file cannot hold {} twice or at all", printable(e.name));
    e.begin = at;
    at += static_cast<uint64_t>(
        checked_multiply(e.shape.numel(), static_cast<int64_t>(size_bytes(e.dtype)), "bytes of " + printable(e.name)));
    e.end = at;
  }
  // Written entry by entry: an ordered_json object looks for duplicates linearly, which is quadratic for many tensors.
  json = root.dump();
  json.pop_back();
  for (const Entry& e : header.entries) {
    const nlohmann::ordered_json value = {{"dtype", type_text(e.dtype)}, {"shape", e.shape.extents()}, {"data_offsets", {e.begin, e.end}}};
    json += fmt::format("{}{}:{}", json.size() > 1 ? "," : "", nlohmann::json(e.name).dump(), value.dump());
  }
  json += "}";
  json.append((kDataAlignment - (kLengthBytes + json.size()) % kDataAlignment) % kDataAlignment, ' ');
  RZ_CHECK(json.size() <= kMaxHeaderBytes, "{} tensors need a safetensors header of {} bytes, more than {}", header.entries.size(),
           json.size(), kMaxHeaderBytes);
  header.data_offset = kLengthBytes + json.size();
  header.data_bytes = at;
  const uint64_t length = json.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes + json;
}

Header parse_header(std::string_view json, uint64_t file_bytes, const std::string& what) {
  HeaderReader reader;
  const bool whole = !json.empty() && json.front() == '{' && nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  if (!whole || !reader.problem.empty())
    throw Error(
        fmt::format("{} is not a safetensors file: {}", what, reader.problem.empty() ? "the header is not a JSON object" : reader.problem));
  Header header;
  header.data_offset = kLengthBytes + json.size();
  header.data_bytes = file_bytes - header.data_offset;
  header.entries = std::move(reader.entries);
  header.metadata = std::move(reader.metadata);
  check_tiling(header.entries, header.data_bytes, what);
  return header;
}

Header read_header(const File& file) {
  const uint64_t file_bytes = file.size_bytes();
  if (file_bytes < kLengthBytes) throw Error(fmt::format("{} is not a safetensors file: {} bytes long", file.path(), file_bytes));
  uint64_t length = 0;
  file.read_at(0, &length, kLengthBytes);
  if (length > kMaxHeaderBytes || length > file_bytes - kLengthBytes)
    throw Error(fmt::format("{} is not a safetensors file: its header would be {} bytes, the file is {}", file.path(), length, file_bytes));
  std::string json(length, '\0');
  file.read_at(kLengthBytes, json.data(), json.size());
  return parse_header(json, file_bytes, file.path());
}

}  // namespace rz::optim::checkpoint::safetensors
