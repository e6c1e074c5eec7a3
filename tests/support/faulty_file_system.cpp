#include "tests/support/faulty_file_system.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace rz::test {

using optim::checkpoint::DirectoryEntry;

FaultyFileSystem::FaultyFileSystem() : root_(make_directory_node()) {}

FaultyFileSystem::FaultyFileSystem(const FaultyFileSystem& other) : FileSystem() {
  std::lock_guard lock(other.mutex_);
  std::map<const Node*, NodePtr> done;
  root_ = clone(other.root_, done);
}

FaultyFileSystem::NodePtr FaultyFileSystem::make_directory_node() {
  auto node = std::make_shared<Node>();
  node->is_directory = true;
  node->changed();
  return node;
}

// Nodes that several states share stay shared.
FaultyFileSystem::NodePtr FaultyFileSystem::clone(const NodePtr& node, std::map<const Node*, NodePtr>& done) {
  if (const auto known = done.find(node.get()); known != done.end()) return known->second;
  auto copy = std::make_shared<Node>(*node);
  done[node.get()] = copy;
  for (auto& [name, child] : copy->entries) child = clone(child, done);
  for (auto& state : copy->states)
    for (auto& [name, child] : state) child = clone(child, done);
  return copy;
}

std::pair<std::string, std::string> FaultyFileSystem::split(const std::string& path) {
  const auto slash = path.rfind('/');
  return {path.substr(0, slash), path.substr(slash + 1)};
}

FaultyFileSystem::NodePtr FaultyFileSystem::find(const std::string& path) const {
  NodePtr node = root_;
  for (size_t at = 0; node != nullptr && at < path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    if (end > at) {
      const auto child = node->entries.find(path.substr(at, end - at));
      node = child == node->entries.end() ? nullptr : child->second;
    }
    at = end + 1;
  }
  return node;
}

int64_t FaultyFileSystem::used_bytes(const NodePtr& node) const {
  auto total = static_cast<int64_t>(node->data.size());
  for (const auto& [name, child] : node->entries) total += used_bytes(child);
  return total;
}

int FaultyFileSystem::begin(const std::string& description, bool changes, bool* last) {
  const auto k = static_cast<int64_t>(calls_.size());
  calls_.push_back(description);
  if (die_at_ >= 0 && k >= die_at_) {
    if (last != nullptr) *last = k == die_at_;
    return EIO;
  }
  if (k == fail_call_) return fail_code_;
  if (!match_.empty() && description.find(match_) != std::string::npos) return match_code_;
  return changes && read_only_ ? EROFS : 0;
}

int64_t FaultyFileSystem::calls() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(calls_.size());
}
std::string FaultyFileSystem::call(int64_t k) const {
  std::lock_guard lock(mutex_);
  return k < static_cast<int64_t>(calls_.size()) ? calls_[static_cast<size_t>(k)] : "never made";
}
void FaultyFileSystem::fail_call(int64_t k, int code) { fail_call_ = k, fail_code_ = code; }
void FaultyFileSystem::die_at(int64_t k) { die_at_ = k; }
void FaultyFileSystem::fail_matching(std::string text, int code) { match_ = std::move(text), match_code_ = code; }
void FaultyFileSystem::ignore_syncs(std::string text) { ignored_ = std::move(text); }
bool FaultyFileSystem::is_ignored() const { return !ignored_.empty() && calls_.back().find(ignored_) != std::string::npos; }
void FaultyFileSystem::make_short(uint64_t seed) { short_ = true, random_.seed(seed); }
void FaultyFileSystem::set_capacity(int64_t bytes) { capacity_ = bytes; }
void FaultyFileSystem::set_read_only(bool read_only) { read_only_ = read_only; }
void FaultyFileSystem::heal() {
  fail_call_ = die_at_ = capacity_ = -1;
  match_.clear();
  ignored_.clear();
  short_ = read_only_ = false;
  calls_.clear();
}

void FaultyFileSystem::lose(const NodePtr& node, PowerLoss how, std::mt19937_64& random) {
  if (!node->is_directory) {
    std::string kept = node->durable_data;
    if (how == PowerLoss::random && node->data.size() > kept.size() && node->data.starts_with(kept))
      kept = node->data.substr(0, kept.size() + random() % (node->data.size() - kept.size() + 1));
    node->data = node->durable_data = kept;
    return;
  }
  if (how == PowerLoss::drop_unsynced) node->entries = node->states.front();
  if (how == PowerLoss::random) node->entries = node->states[random() % node->states.size()];
  node->states = {node->entries};
  for (const auto& [name, child] : node->entries) lose(child, how, random);
}

void FaultyFileSystem::lose_power(PowerLoss how, uint64_t seed) {
  std::lock_guard lock(mutex_);
  std::mt19937_64 random(seed);
  handles_.clear();
  lose(root_, how, random);
}

std::string* FaultyFileSystem::contents(const std::string& path) {
  const NodePtr node = find(path);
  return node == nullptr || node->is_directory ? nullptr : &node->data;
}

void FaultyFileSystem::put(const std::string& path, const std::string& contents) {
  auto node = std::make_shared<Node>();
  node->data = node->durable_data = contents;
  const auto [directory, name] = split(path);
  const NodePtr parent = find(directory);
  parent->entries[name] = node;
  parent->states = {parent->entries};
}

std::vector<std::string> FaultyFileSystem::names(const std::string& directory) {
  std::vector<std::string> out;
  if (const NodePtr node = find(directory))
    for (const auto& [name, child] : node->entries) out.push_back(name);
  return out;
}

void FaultyFileSystem::erase(const std::string& path) {
  const auto [directory, name] = split(path);
  const NodePtr parent = find(directory);
  parent->entries.erase(name);
  parent->states = {parent->entries};
}

int FaultyFileSystem::do_open(const std::string& directory, const std::string& name, Open how) {
  std::lock_guard lock(mutex_);
  const std::string path = directory + "/" + name;
  const bool create = how == Open::create;
  if (const int code = begin((create ? "create " : "open ") + path, create)) return -code;
  const NodePtr parent = find(directory);
  if (parent == nullptr) return -ENOENT;
  if (!parent->is_directory) return -ENOTDIR;
  NodePtr node = find(path);
  if (create) {
    if (node != nullptr) return -EEXIST;
    node = parent->entries[name] = std::make_shared<Node>();
    parent->changed();
  }
  if (node == nullptr) return -ENOENT;
  if (node->is_directory) return -EINVAL;
  handles_[next_handle_] = {node, path};
  return next_handle_++;
}

int64_t FaultyFileSystem::do_write(int handle, const void* data, size_t bytes) {
  std::lock_guard lock(mutex_);
  const auto at = handles_.find(handle);
  if (at == handles_.end()) return -EBADF;
  std::string& to = at->second.node->data;
  bool last = false;
  const int code = begin("write " + at->second.path, true, &last);
  if (last) to.append(static_cast<const char*>(data), bytes / 2);
  if (code != 0) return -code;
  if (short_ && random_() % 4 == 0) return -EINTR;
  if (short_ && bytes > 1) bytes = 1 + random_() % bytes;
  if (capacity_ >= 0) {
    const int64_t left = capacity_ - used_bytes(root_);
    if (left <= 0) return -ENOSPC;
    bytes = std::min(bytes, static_cast<size_t>(left));
  }
  to.append(static_cast<const char*>(data), bytes);
  return static_cast<int64_t>(bytes);
}

int64_t FaultyFileSystem::do_read(int handle, void* data, size_t bytes, uint64_t offset) {
  std::lock_guard lock(mutex_);
  const auto at = handles_.find(handle);
  if (at == handles_.end()) return -EBADF;
  if (const int code = begin("read " + at->second.path, false)) return -code;
  if (short_ && random_() % 4 == 0) return -EINTR;
  if (short_ && bytes > 1) bytes = 1 + random_() % bytes;
  const std::string& from = at->second.node->data;
  if (offset >= from.size()) return 0;
  bytes = std::min(bytes, from.size() - static_cast<size_t>(offset));
  std::memcpy(data, from.data() + offset, bytes);
  return static_cast<int64_t>(bytes);
}

int64_t FaultyFileSystem::do_size(int handle) {
  std::lock_guard lock(mutex_);
  const auto at = handles_.find(handle);
  if (at == handles_.end()) return -EBADF;
  if (const int code = begin("stat " + at->second.path, false)) return -code;
  return static_cast<int64_t>(at->second.node->data.size());
}

int FaultyFileSystem::do_sync(int handle) {
  std::lock_guard lock(mutex_);
  const auto at = handles_.find(handle);
  if (at == handles_.end()) return -EBADF;
  if (const int code = begin("sync " + at->second.path, false)) return -code;
  if (!is_ignored()) at->second.node->durable_data = at->second.node->data;
  return 0;
}

int FaultyFileSystem::do_close(int handle) {
  std::lock_guard lock(mutex_);
  const auto at = handles_.find(handle);
  if (at == handles_.end()) return -EBADF;
  const int code = begin("close " + at->second.path, false);
  handles_.erase(at);
  return -code;
}

int FaultyFileSystem::do_make_directory(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("mkdir " + path, true)) return -code;
  const auto [directory, name] = split(path);
  const NodePtr parent = find(directory);
  if (parent == nullptr || !parent->is_directory) return -ENOENT;
  if (parent->entries.contains(name)) return -EEXIST;
  parent->entries[name] = make_directory_node();
  parent->changed();
  return 0;
}

int FaultyFileSystem::do_list(const std::string& path, std::vector<DirectoryEntry>& entries) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("list " + path, false)) return -code;
  const NodePtr node = find(path);
  if (node == nullptr || !node->is_directory) return -ENOENT;
  for (const auto& [name, child] : node->entries) entries.push_back({name, child->is_directory});
  return 0;
}

int FaultyFileSystem::do_rename(const std::string& from, const std::string& to) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("rename " + from + " -> " + to, true)) return -code;
  const auto [from_directory, from_name] = split(from);
  const auto [to_directory, to_name] = split(to);
  const NodePtr parent = find(from_directory);
  const NodePtr node = find(from), target = find(to);
  if (node == nullptr) return -ENOENT;
  if (from_directory != to_directory) return -EXDEV;
  if (target != nullptr && target->is_directory && !target->entries.empty()) return -ENOTEMPTY;
  parent->entries.erase(from_name);
  parent->entries[to_name] = node;
  parent->changed();
  return 0;
}

int FaultyFileSystem::do_remove_file(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("remove " + path, true)) return -code;
  const NodePtr node = find(path);
  if (node == nullptr) return -ENOENT;
  if (node->is_directory) return -EISDIR;
  const auto [directory, name] = split(path);
  const NodePtr parent = find(directory);
  parent->entries.erase(name);
  parent->changed();
  return 0;
}

int FaultyFileSystem::do_remove_directory(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("rmdir " + path, true)) return -code;
  const NodePtr node = find(path);
  if (node == nullptr) return -ENOENT;
  if (!node->is_directory) return -ENOTDIR;
  if (!node->entries.empty()) return -ENOTEMPTY;
  const auto [directory, name] = split(path);
  const NodePtr parent = find(directory);
  parent->entries.erase(name);
  parent->changed();
  return 0;
}

int FaultyFileSystem::do_sync_directory(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("sync directory " + path, false)) return -code;
  const NodePtr node = find(path);
  if (node == nullptr || !node->is_directory) return -ENOENT;
  if (!is_ignored()) node->states = {node->entries};
  return 0;
}

int FaultyFileSystem::do_is_directory(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (const int code = begin("is directory " + path, false)) return -code;
  const NodePtr node = find(path);
  return node != nullptr && node->is_directory ? 1 : 0;
}

}  // namespace rz::test
