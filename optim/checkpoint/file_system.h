// FileSystem: the one interface through which a checkpoint is written and read.
//
// Two layers. The protected do_* primitives are single system calls that answer -errno; the public verbs on top retry
// EINTR, finish short reads and writes, and throw FileError naming the path and the errno text. Tests replace the
// primitives (tests/support/faulty_file_system.h), so that every retry and every failure path runs.
// A file is named by its directory and a single path component, and is never reached through a symbolic link.
// Thread-safe as far as the primitives are: the real one is; a File belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/core/error.h"

namespace rz::optim::checkpoint {

// A system call failed: "cannot <verb> <path>: <errno text>".
class FileError : public Error {
 public:
  FileError(const std::string& verb, const std::string& path, int code);
  int code() const { return code_; }  // errno

 private:
  int code_;
};

class FileSystem;

// An open file. The destructor closes it without a word; a writer calls close() to hear of errors.
class File {
 public:
  File(FileSystem& system, int handle, std::string path) : system_(&system), handle_(handle), path_(std::move(path)) {}
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const;
  // Appends all of `bytes`.
  void write(const void* data, size_t bytes);
  // Fills all of `data` from `offset`; the end of the file before that is an error.
  void read_at(uint64_t offset, void* data, size_t bytes) const;
  // Returns once the contents are on stable storage.
  void sync();
  void close();

 private:
  FileSystem* system_;
  int handle_;
  std::string path_;
};

struct DirectoryEntry {
  std::string name;
  bool is_directory = false;  // follows symbolic links
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // A new file (it must not exist), opened for appending.
  File create_file(const std::string& directory, const std::string& name);
  // An existing regular file, opened for reading.
  File open_file(const std::string& directory, const std::string& name);

  void create_directory(const std::string& path);  // its parent exists, it does not
  // Makes what is missing of `path` and syncs each parent that gained an entry.
  void create_directories(const std::string& path);
  bool is_directory(const std::string& path);  // false where there is nothing; an error where that cannot be told
  // Without "." and "..", sorted by name.
  std::vector<DirectoryEntry> list(const std::string& path);
  void rename(const std::string& from, const std::string& to);
  void remove_file(const std::string& path);
  // The directory, the files in it, and nothing deeper (a step directory has no subdirectories).
  void remove_directory_and_files(const std::string& path);
  // Returns once the entries of the directory are on stable storage.
  void sync_directory(const std::string& path);

 protected:
  enum class Open { create, read };
  // Each answers a value >= 0, or -errno.
  virtual int do_open(const std::string& directory, const std::string& name, Open how) = 0;
  virtual int64_t do_write(int handle, const void* data, size_t bytes) = 0;
  virtual int64_t do_read(int handle, void* data, size_t bytes, uint64_t offset) = 0;
  virtual int64_t do_size(int handle) = 0;
  virtual int do_sync(int handle) = 0;
  virtual int do_close(int handle) = 0;
  virtual int do_make_directory(const std::string& path) = 0;
  virtual int do_list(const std::string& path, std::vector<DirectoryEntry>& entries) = 0;
  virtual int do_rename(const std::string& from, const std::string& to) = 0;
  virtual int do_remove_file(const std::string& path) = 0;
  virtual int do_remove_directory(const std::string& path) = 0;
  virtual int do_sync_directory(const std::string& path) = 0;
  virtual int do_is_directory(const std::string& path) = 0;  // 1, or 0 where there is none

 private:
  friend class File;
  File open(const std::string& directory, const std::string& name, Open how);
};

// The machine's own (POSIX).
FileSystem& real_file_system();

// directory/name.
std::string join(const std::string& directory, const std::string& name);

}  // namespace rz::optim::checkpoint
