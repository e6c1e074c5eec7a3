// A read-only file of known size, read with pread: a file that another process truncates meanwhile is an error here, not a signal.
//
// Every failure is a ConfigError naming the path. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace rz::models {

class InputFile {
 public:
  // Opens a regular file.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  // Its size when it was opened.
  int64_t size_bytes() const { return size_bytes_; }
  // Fills `out` from `offset` on, wholly.
  void read_at(int64_t offset, std::span<std::byte> out) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_bytes_ = 0;
};

}  // namespace rz::models
