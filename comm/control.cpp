#include "comm/control.h"

#include <cstring>

namespace rz::comm {

namespace {

template <size_t N>
void copy_text(char (&to)[N], std::string_view from) {
  const size_t n = std::min(from.size(), N - 1);
  std::copy_n(from.data(), n, to);
  std::memset(to + n, 0, N - n);
}

template <size_t N>
std::string_view text_of(const char (&text)[N]) {
  return {text, strnlen(text, N)};
}

uint64_t fnv1a(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325ULL;
  for (const unsigned char c : text) h = (h ^ c) * 0x100000001b3ULL;
  return h;
}

// A peer's bytes may be anything: never index a name table with them.
template <class Enum>
std::string safe_name(Enum value, int limit) {
  const int i = static_cast<int>(value);
  return i < limit ? std::string(name(value)) : fmt::format("unknown {}", i);
}

std::string shown(std::string_view name) { return name.empty() ? "unnamed" : std::string(name); }

}  // namespace

void Fingerprint::set_name(std::string_view name) {
  name_hash = fnv1a(name);
  copy_text(text, name);
}
std::string_view Fingerprint::name() const { return text_of(text); }

bool Fingerprint::operator==(const Fingerprint& o) const {
  return magic == o.magic && group == o.group && sequence == o.sequence && count == o.count && name_hash == o.name_hash &&
         segment_bytes == o.segment_bytes && root == o.root && kind == o.kind && dtype == o.dtype && op == o.op && order == o.order;
}

uint64_t Fingerprint::digest() const {
  // Odd factors, so that no difference of one word vanishes; no chain, since short operations wait for it.
  return (magic | uint64_t{group} << 32) * 0x9e3779b97f4a7c15ULL + sequence * 0xbf58476d1ce4e5b9ULL + count * 0x94d049bb133111ebULL +
         name_hash * 0xff51afd7ed558ccdULL + segment_bytes * 0xc4ceb9fe1a85ec53ULL +
         (static_cast<uint32_t>(root) | uint64_t{static_cast<uint8_t>(kind)} << 32 | uint64_t{static_cast<uint8_t>(dtype)} << 40 |
          uint64_t{static_cast<uint8_t>(op)} << 48 | uint64_t{static_cast<uint8_t>(order)} << 56) *
             0xd6e8feb86659fd93ULL;
}

std::string describe(const Fingerprint& f) {
  const std::string group = f.group == 0 ? "" : fmt::format(" of group {:08x}", f.group);
  return fmt::format("op#{}{} {}({}, {}, {})", f.sequence, group, shown(f.name()), safe_name(f.kind, kCollectiveKinds),
                     safe_name(f.dtype, 7), f.count);
}

std::string difference(const Fingerprint& ours, const Fingerprint& theirs) {
  if (theirs.magic != ours.magic) return "not a fingerprint of this version";
  std::string out;
  const auto add = [&out](std::string_view what, const auto& their, const auto& our) {
    if (their == our) return;
    out += fmt::format("{}{} {}, not {}", out.empty() ? "" : "; ", what, their, our);
  };
  add("group", theirs.group, ours.group);
  add("sequence", theirs.sequence, ours.sequence);
  add("kind", safe_name(theirs.kind, kCollectiveKinds), safe_name(ours.kind, kCollectiveKinds));
  add("dtype", safe_name(theirs.dtype, 7), safe_name(ours.dtype, 7));
  add("count", theirs.count, ours.count);
  add("op", safe_name(theirs.op, 4), safe_name(ours.op, 4));
  add("order", safe_name(theirs.order, 2), safe_name(ours.order, 2));
  add("root", theirs.root, ours.root);
  add("segment bytes", theirs.segment_bytes, ours.segment_bytes);
  if (theirs.name_hash != ours.name_hash) add("name", shown(theirs.name()), shown(ours.name()));
  return out;
}

void ControlMessage::set_text(std::string_view value) { copy_text(text, value); }
std::string_view ControlMessage::get_text() const { return text_of(text); }

}  // namespace rz::comm
