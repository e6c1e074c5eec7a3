#include "optim/checkpoint/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

namespace rz::optim::checkpoint {

namespace {

// A system call that a signal interrupted did nothing: ask again.
template <class F>
auto retry_interrupted(F&& call) {
  for (;;) {
    const auto result = call();
    if (result != -EINTR) return result;
  }
}

int64_t check(int64_t result, const char* verb, const std::string& path) {
  if (result < 0) throw FileError(verb, path, static_cast<int>(-result));
  return result;
}

std::string parent_of(const std::string& path) {
  const auto end = path.find_last_not_of('/');
  const auto slash = end == std::string::npos ? end : path.rfind('/', end);
  if (slash == std::string::npos) return end == std::string::npos ? "/" : ".";
  const auto last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

}  // namespace

FileError::FileError(const std::string& verb, const std::string& path, int code)
    : Error(fmt::format("cannot {} {}: {}", verb, path, std::generic_category().message(code))), code_(code) {}

std::string join(const std::string& directory, const std::string& name) {
  return directory.ends_with('/') ? directory + name : directory + "/" + name;
}

File::File(File&& other) noexcept : system_(other.system_), handle_(std::exchange(other.handle_, -1)), path_(std::move(other.path_)) {}

File::~File() {
  if (handle_ >= 0) system_->do_close(handle_);
}

uint64_t File::size_bytes() const { return static_cast<uint64_t>(check(system_->do_size(handle_), "stat", path_)); }

void File::write(const void* data, size_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const int64_t wrote = check(retry_interrupted([&] { return system_->do_write(handle_, at, bytes); }), "write", path_);
    if (wrote == 0) throw FileError("write", path_, EIO);  // POSIX leaves this open; a loop would never end
    at += wrote;
    bytes -= static_cast<size_t>(wrote);
  }
}

void File::read_at(uint64_t offset, void* data, size_t bytes) const {
  auto* at = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const int64_t got = check(retry_interrupted([&] { return system_->do_read(handle_, at, bytes, offset); }), "read", path_);
    if (got == 0) throw Error(fmt::format("{} ends at byte {}, where {} more were expected", path_, offset, bytes));
    at += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
}

void File::sync() {
  check(retry_interrupted([&] { return system_->do_sync(handle_); }), "sync", path_);
}

void File::close() {
  // Linux frees the descriptor even when close is interrupted: never a second time.
  const int result = system_->do_close(std::exchange(handle_, -1));
  if (result != -EINTR) check(result, "close", path_);
}

File FileSystem::open(const std::string& directory, const std::string& name, Open how) {
  const std::string path = join(directory, name);
  RZ_CHECK(!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos && name.find('\0') == std::string::npos,
           "{} is not the name of a file in a directory", path);
  const int handle = retry_interrupted([&] { return do_open(directory, name, how); });
  return File(*this, static_cast<int>(check(handle, how == Open::create ? "create" : "open", path)), path);
}

File FileSystem::create_file(const std::string& directory, const std::string& name) { return open(directory, name, Open::create); }

File FileSystem::open_file(const std::string& directory, const std::string& name) { return open(directory, name, Open::read); }

void FileSystem::create_directory(const std::string& path) { check(do_make_directory(path), "create directory", path); }

void FileSystem::create_directories(const std::string& path) {
  if (is_directory(path)) return;
  const std::string parent = parent_of(path);
  if (parent != path) create_directories(parent);
  const int result = do_make_directory(path);
  if (result == -EEXIST && !is_directory(path)) throw FileError("create directory", path, ENOTDIR);
  if (result != -EEXIST) check(result, "create directory", path);
  sync_directory(parent);
}

bool FileSystem::is_directory(const std::string& path) { return check(do_is_directory(path), "stat", path) > 0; }

std::vector<DirectoryEntry> FileSystem::list(const std::string& path) {
  std::vector<DirectoryEntry> entries;
  check(do_list(path, entries), "list", path);
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return entries;
}

void FileSystem::rename(const std::string& from, const std::string& to) {
  check(do_rename(from, to), "rename", fmt::format("{} to {}", from, to));
}

void FileSystem::remove_file(const std::string& path) { check(do_remove_file(path), "remove", path); }

void FileSystem::remove_directory_and_files(const std::string& path) {
  for (const auto& entry : list(path)) remove_file(join(path, entry.name));
  check(do_remove_directory(path), "remove directory", path);
}

void FileSystem::sync_directory(const std::string& path) {
  check(retry_interrupted([&] { return do_sync_directory(path); }), "sync directory", path);
}

namespace {

int open_directory(const std::string& path) { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

class PosixFileSystem final : public FileSystem {
 protected:
  int do_open(const std::string& directory, const std::string& name, Open how) override {
    const int beneath = open_directory(directory);
    if (beneath < 0) return -errno;
    // O_NONBLOCK: opening a FIFO that lies in a file's place must not wait for a writer.
    const int flags = how == Open::create ? O_WRONLY | O_CREAT | O_EXCL | O_APPEND : O_RDONLY | O_NONBLOCK;
    int handle = ::openat(beneath, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (handle < 0) handle = -errno;
    ::close(beneath);
    struct stat status {};
    if (handle >= 0 && (::fstat(handle, &status) != 0 || !S_ISREG(status.st_mode))) {
      ::close(handle);
      return -EINVAL;
    }
    return handle;
  }
  int64_t do_write(int handle, const void* data, size_t bytes) override {
    const ssize_t n = ::write(handle, data, bytes);
    return n < 0 ? -errno : n;
  }
  int64_t do_read(int handle, void* data, size_t bytes, uint64_t offset) override {
    const ssize_t n = ::pread(handle, data, bytes, static_cast<off_t>(offset));
    return n < 0 ? -errno : n;
  }
  int64_t do_size(int handle) override {
    struct stat status {};
    return ::fstat(handle, &status) != 0 ? -errno : status.st_size;
  }
  int do_sync(int handle) override { return ::fsync(handle) != 0 ? -errno : 0; }
  int do_close(int handle) override { return ::close(handle) != 0 ? -errno : 0; }
  int do_make_directory(const std::string& path) override { return ::mkdir(path.c_str(), 0777) != 0 ? -errno : 0; }
  int do_list(const std::string& path, std::vector<DirectoryEntry>& entries) override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return -errno;
    errno = 0;
    while (const dirent* entry = ::readdir(directory)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") entries.push_back({name, do_is_directory(join(path, name)) > 0});
      errno = 0;
    }
    const int failure = errno;
    ::closedir(directory);
    return -failure;
  }
  int do_rename(const std::string& from, const std::string& to) override { return ::rename(from.c_str(), to.c_str()) != 0 ? -errno : 0; }
  int do_remove_file(const std::string& path) override { return ::unlink(path.c_str()) != 0 ? -errno : 0; }
  int do_remove_directory(const std::string& path) override { return ::rmdir(path.c_str()) != 0 ? -errno : 0; }
  int do_sync_directory(const std::string& path) override {
    const int handle = open_directory(path);
    if (handle < 0) return -errno;
    int result = ::fsync(handle) != 0 ? -errno : 0;
    if (result == -EINVAL) result = 0;  // a file system that cannot sync directories has nothing better to offer
    ::close(handle);
    return result;
  }
  int do_is_directory(const std::string& path) override {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) return S_ISDIR(status.st_mode) ? 1 : 0;
    return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
  }
};

}  // namespace

FileSystem& real_file_system() {
  static PosixFileSystem instance;
  return instance;
}

}  // namespace rz::optim::checkpoint
