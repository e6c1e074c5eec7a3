#include "tools/mpirun.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "comm/launch.h"
#include "runtime/core/error.h"

namespace rz::tools {

namespace {

constexpr size_t kTailBytes = 2000;
constexpr auto kPoll = std::chrono::milliseconds(20);

std::string tail_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  return all.size() <= kTailBytes ? all : "..." + all.substr(all.size() - kTailBytes);
}

// Waits for `child`; false when it had to be killed at the deadline.
bool wait_for(pid_t child, double timeout_s, int& status) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  while (true) {
    const pid_t ended = ::waitpid(child, &status, timeout_s > 0 ? WNOHANG : 0);
    if (ended == child) return true;
    if (ended < 0 && errno != EINTR) throw Error(fmt::format("waiting for mpirun failed: {}", std::strerror(errno)));
    if (ended != 0) continue;
    if (std::chrono::steady_clock::now() > deadline) break;
    std::this_thread::sleep_for(kPoll);
  }
  ::kill(child, SIGTERM);  // mpirun ends its ranks
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return false;
}

}  // namespace

void mpirun_self(int ranks, const std::vector<std::string>& arguments, const std::string& log, double timeout_s) {
  RZ_CONFIG_CHECK(!comm::under_mpirun(), "measuring starts mpirun itself: run it without mpirun");
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  std::vector<std::string> words = {"mpirun", "-np", std::to_string(ranks), "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", self};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  // Open MPI refuses to be started by root unless told twice.
  std::vector<std::string> variables;
  for (char** v = environ; *v != nullptr; ++v) variables.emplace_back(*v);
  if (::geteuid() == 0) variables.insert(variables.end(), {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, "mpirun", &actions, nullptr, argv.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  RZ_CONFIG_CHECK(error == 0, "mpirun cannot be started ({}): install it with: apt-get install openmpi-bin", std::strerror(error));
  int status = 0;
  const bool in_time = wait_for(child, timeout_s, status);
  if (in_time && WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  throw Error(fmt::format("mpirun on {} ranks {}:\n{}", ranks,
                          !in_time ? fmt::format("took longer than {} s", timeout_s)
                                   : WIFEXITED(status) ? fmt::format("ended with code {}", WEXITSTATUS(status)) : "was killed",
                          tail_of(log)));
}

}  // namespace rz::tools
