#include "tools/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

namespace rz::tools {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here sets variables
  return value == nullptr ? "" : value;
}

// The locale's character set, by the rule of POSIX: the first of these that is set decides.
bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string value = variable(name);
    if (value.empty()) continue;
    return value.find("UTF-8") != std::string::npos || value.find("utf8") != std::string::npos || value.find("UTF8") != std::string::npos;
  }
  return false;
}

// A descriptor of where the output ends up, or -1 when that cannot be known. The caller closes it.
int open_output() {
  if (variable("OMPI_COMM_WORLD_RANK").empty()) return ::dup(STDOUT_FILENO);
  const std::string parent = "/proc/" + std::to_string(::getppid());
  std::string command;
  std::getline(std::ifstream(parent + "/comm"), command);
  // On other hosts the parent is a daemon, whose own output is not where ours goes.
  if (!command.starts_with("mpirun") && !command.starts_with("mpiexec") && !command.starts_with("orterun")) return -1;
  // Opening the link of a pipe or a regular file would do no harm, but only a terminal is of interest.
  return ::open((parent + "/fd/1").c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

}  // namespace

TerminalStyle detect_terminal() {
  TerminalStyle style;
  style.utf8 = locale_is_utf8();
  const int output = open_output();
  if (output < 0) return style;
  style.is_terminal = ::isatty(output) == 1 && variable("TERM") != "dumb";
  winsize size{};
  if (style.is_terminal && ::ioctl(output, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    style.columns = std::clamp<int>(size.ws_col, 20, 500);
  ::close(output);
  return style;
}

}  // namespace rz::tools
