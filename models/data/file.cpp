#include "models/data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/core/error.h"

namespace rz::models {

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer; it is refused below.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  RZ_CONFIG_CHECK(descriptor_ >= 0, "{}: cannot be opened: {}", path_, std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    const int error = errno;
    ::close(descriptor_);
    throw ConfigError(fmt::format("{}: {}", path_, known ? "not a regular file" : std::strerror(error)));
  }
  size_bytes_ = status.st_size;
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read_at(int64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(descriptor_, out.data() + done, out.size() - done, static_cast<off_t>(offset + static_cast<int64_t>(done)));
    if (got < 0 && errno == EINTR) continue;
    RZ_CONFIG_CHECK(got >= 0, "{}: reading at byte {} failed: {}", path_, offset + static_cast<int64_t>(done), std::strerror(errno));
    RZ_CONFIG_CHECK(got > 0, "{}: ends at byte {}, {} bytes early", path_, offset + static_cast<int64_t>(done), out.size() - done);
    done += static_cast<size_t>(got);
  }
}

}  // namespace rz::models
