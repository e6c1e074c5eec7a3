// Text files, and the King James Bible as the program `bible` prints it.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <string_view>

#include "models/data/file.h"
#include "models/data/load.h"
#include "runtime/core/error.h"

namespace rz::models {
namespace {

constexpr int64_t kVerses = 31102;
constexpr size_t kBibleBytes = kKingJamesBytes;
// What is printed carries a reference of at most 13 bytes a verse; far more than that is some other program.
constexpr size_t kMaxOutputBytes = size_t{16} << 20;
constexpr const char* kInstall = "install it with: apt-get install bible-kjv bible-kjv-text";

// What `bible` prints for the whole text. No shell: the program is looked up in PATH and its arguments are fixed.
std::string run_bible(const std::string& program) {
  std::array<int, 2> ends{};
  RZ_CONFIG_CHECK(::pipe2(ends.data(), O_CLOEXEC) == 0, "cannot make a pipe to '{}': {}", program, std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::array<std::string, 4> words{program, "-f", "-l100000", "gen1:1-rev22:21"};
  std::array<char*, 5> arguments{words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    throw ConfigError(fmt::format("the program '{}', which prints the King James Bible, cannot be started ({}): {}", program,
                                  std::strerror(error), kInstall));
  }

  std::string output;
  std::array<char, 1 << 16> block{};
  while (output.size() <= kMaxOutputBytes) {
    const ssize_t got = ::read(ends[0], block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    output.append(block.data(), static_cast<size_t>(got));
  }
  ::close(ends[0]);
  const bool endless = output.size() > kMaxOutputBytes;
  if (endless) ::kill(child, SIGKILL);
  int status = 0;
  pid_t waited = 0;
  do waited = ::waitpid(child, &status, 0);
  while (waited < 0 && errno == EINTR);
  // ECHILD: this process lets the system reap its children; then the text itself is the only witness, and it is checked.
  const bool failed = waited == child && status != 0 && !endless;
  RZ_CONFIG_CHECK(!failed, "the program '{}' failed (status {:#x}) instead of printing the King James Bible: {}", program, status,
                  kInstall);
  return output;
}

}  // namespace

TokenDataset load_text_file(const std::string& path, double validation_fraction) {
  const InputFile file(path);
  RZ_CONFIG_CHECK(file.size_bytes() > 0, "{}: is empty", path);
  std::string text(static_cast<size_t>(file.size_bytes()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return TokenDataset::of_text(text, validation_fraction, path);
}

TokenDataset load_king_james_bible(double validation_fraction, const std::string& program) {
  const std::string printed = run_bible(program);
  std::string text;
  text.reserve(kBibleBytes);
  int64_t verses = 0;
  for (std::string_view rest = printed; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    // A line is "Ge1:1 In the beginning ..."; a line without a space stays whole, as sed 's/^[^ ]* //' leaves it.
    const size_t space = line.find(' ');
    text += space == std::string_view::npos ? line : line.substr(space + 1);
    text += '\n';
    ++verses;
  }
  RZ_CONFIG_CHECK(verses == kVerses && text.size() == kBibleBytes,
                  "the program '{}' printed {} lines, {} bytes without references, not the King James Bible's {} verses, {} bytes: {}",
                  program, verses, text.size(), kVerses, kBibleBytes, kInstall);
  return TokenDataset::of_text(text, validation_fraction, "the King James Bible");
}

}  // namespace rz::models
