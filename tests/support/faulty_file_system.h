// A file system in memory that breaks on demand: the k-th call fails, the process dies at the k-th call, calls are
// interrupted or short, the disk fills up, power is lost. What was not synced can be dropped, as a real machine may.
//
// Model of durability: a file's contents are durable as of its last sync; a directory's entries as of its own last sync, and
// a power loss may keep any later state of that directory that existed (operations on one directory are never reordered).
// Paths are absolute ("/a/b"). Thread-safe: ranks as threads share one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "optim/checkpoint/file_system.h"

namespace rz::test {

class FaultyFileSystem : public optim::checkpoint::FileSystem {
 public:
  FaultyFileSystem();
  // A copy of the files; without the faults and the counts.
  FaultyFileSystem(const FaultyFileSystem& other);

  // Primitive calls so far.
  int64_t calls() const;
  // What call number `k` was: "write /a/b".
  std::string call(int64_t k) const;

  // Call number `k` (from 0) fails with `code` and has no effect.
  void fail_call(int64_t k, int code);
  // Call number `k` is the last thing that happens (half of it, if it is a write); it and all later ones fail.
  void die_at(int64_t k);
  // Calls whose description contains `text` fail with `code`.
  void fail_matching(std::string text, int code);
  // Syncs whose description contains `text` succeed without doing anything.
  void ignore_syncs(std::string text);
  // Reads and writes are interrupted or move fewer bytes than asked, at random.
  void make_short(uint64_t seed);
  void set_capacity(int64_t bytes);
  void set_read_only(bool read_only);
  // No more faults; counts from 0.
  void heal();

  enum class PowerLoss {
    drop_unsynced,  // every directory and file as last synced
    keep_names,     // directories as they are, files as last synced
    random,         // each directory any state since its last sync; each unsynced file cut anywhere
  };
  void lose_power(PowerLoss how, uint64_t seed = 0);

  // For tampering and checking; null / empty when there is no such file. Not while ranks run.
  std::string* contents(const std::string& path);
  void put(const std::string& path, const std::string& contents);
  std::vector<std::string> names(const std::string& directory);
  void erase(const std::string& path);

 protected:
  int do_open(const std::string& directory, const std::string& name, Open how) override;
  int64_t do_write(int handle, const void* data, size_t bytes) override;
  int64_t do_read(int handle, void* data, size_t bytes, uint64_t offset) override;
  int64_t do_size(int handle) override;
  int do_sync(int handle) override;
  int do_close(int handle) override;
  int do_make_directory(const std::string& path) override;
  int do_list(const std::string& path, std::vector<optim::checkpoint::DirectoryEntry>& entries) override;
  int do_rename(const std::string& from, const std::string& to) override;
  int do_remove_file(const std::string& path) override;
  int do_remove_directory(const std::string& path) override;
  int do_sync_directory(const std::string& path) override;
  int do_is_directory(const std::string& path) override;

 private:
  struct Node;
  using NodePtr = std::shared_ptr<Node>;
  using Entries = std::map<std::string, NodePtr>;
  struct Node {
    bool is_directory = false;
    std::string data, durable_data;
    Entries entries;
    std::vector<Entries> states;  // of the entries: as last synced, then after every change
    void changed() { states.push_back(entries); }
  };
  struct Handle {
    NodePtr node;
    std::string path;
  };

  static NodePtr make_directory_node();
  static NodePtr clone(const NodePtr& node, std::map<const Node*, NodePtr>& done);
  NodePtr find(const std::string& path) const;
  static std::pair<std::string, std::string> split(const std::string& path);
  void lose(const NodePtr& node, PowerLoss how, std::mt19937_64& random);
  int64_t used_bytes(const NodePtr& node) const;

  // Counts a call; the errno with which it must fail, or 0. `last` is set when it is the one at which the process dies.
  int begin(const std::string& description, bool changes, bool* last = nullptr);
  bool is_ignored() const;  // the call just begun

  mutable std::mutex mutex_;
  NodePtr root_;
  std::map<int, Handle> handles_;
  int next_handle_ = 3;
  std::vector<std::string> calls_;
  int64_t fail_call_ = -1, die_at_ = -1, capacity_ = -1;
  int fail_code_ = 0, match_code_ = 0;
  std::string match_, ignored_;
  bool short_ = false, read_only_ = false;
  std::mt19937_64 random_;
};

}  // namespace rz::test
