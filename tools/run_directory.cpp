#include "tools/run_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/core/error.h"
#include "tools/atomic_file.h"

namespace rz::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Folders made on the way to a run directory, taken back unless keep() is called.
class MadeFolders {
 public:
  MadeFolders() = default;
  MadeFolders(const MadeFolders&) = delete;
  MadeFolders& operator=(const MadeFolders&) = delete;
  ~MadeFolders() {
    std::error_code ignored;
    for (auto folder = made_.rbegin(); folder != made_.rend(); ++folder) fs::remove(*folder, ignored);  // only when empty
  }

  void make(const fs::path& path) {
    std::error_code error;
    if (fs::is_directory(path, error)) return;
    if (path.has_parent_path() && path.parent_path() != path) make(path.parent_path());
    if (fs::create_directory(path, error)) {
      made_.push_back(path);
    } else {
      // Made by someone else meanwhile is as good.
      RZ_CONFIG_CHECK(!error && fs::is_directory(path), "the run directory {} cannot be made: {}", path.string(),
                      error ? error.message() : "not a folder");
    }
  }
  void keep() { made_.clear(); }

 private:
  std::vector<fs::path> made_;
};

std::string to_text(const ordered_json& value, int indent) {
  return value.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
}

bool holds_checkpoint(const std::string& path) {
  std::error_code error;
  const fs::directory_iterator entries(RunDirectory::checkpoint_path(path), error);
  return !error && entries != fs::directory_iterator();
}

// Calls f(line, its object); true when the last line is torn: it lacks its end, because the writer died within it.
template <class F>
bool for_each_metrics_line(const std::string& path, const F& f) {
  std::ifstream in(path, std::ios::binary);
  RZ_CONFIG_CHECK(in.is_open(), "{}: cannot be read: {}", path, std::strerror(errno));
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (in.eof()) return true;
    const auto value = ordered_json::parse(line, nullptr, false);
    const bool good = value.is_object() && value.contains("step") && value["step"].is_number_integer();
    RZ_CONFIG_CHECK(good, "{}:{}: is not an object with an integer \"step\"; the run's metrics are damaged", path, number);
    f(line, value);
  }
  RZ_CONFIG_CHECK(!in.bad(), "{}: cannot be read", path);
  return false;
}

}  // namespace

RunDirectory RunDirectory::create(const std::string& path, const std::string& job_text) {
  RZ_CONFIG_CHECK(!path.empty(), "the run directory has no name");
  RunDirectory run(path);
  std::error_code error;
  const bool has_metrics = fs::exists(run.metrics_path(), error) && fs::file_size(run.metrics_path(), error) > 0;
  const bool has_checkpoint = holds_checkpoint(path);
  RZ_CONFIG_CHECK(!has_metrics && !has_checkpoint, "{} holds a run ({}): {} choose another folder with --out", path,
                  has_metrics ? "metrics.jsonl" : "checkpoint",
                  has_checkpoint ? "go on with it by --resume, or" : "it ended before its first checkpoint; remove it, or");
  const bool had_job = fs::exists(run.job_path(), error);
  MadeFolders folders;
  try {
    folders.make(fs::path(run.checkpoint_path()));
    run.open_metrics();
    write_file_atomically(run.job_path(), job_text);
    fs::remove(run.summary_path(), error);  // of an earlier run without metrics: it would not tell of this one
  } catch (const Error& problem) {
    if (run.metrics_ >= 0 && !has_metrics) fs::remove(run.metrics_path(), error);
    if (!had_job) fs::remove(run.job_path(), error);
    throw ConfigError(problem.what());
  }
  folders.keep();
  return run;
}

RunDirectory RunDirectory::resume(const std::string& path, const std::string& job_text, int64_t resumed_step) {
  RunDirectory run(path);
  RZ_CONFIG_CHECK(fs::exists(run.metrics_path()), "{} holds no run to resume: {} is missing", path, run.metrics_path());
  try {
    run.drop_metrics_after(resumed_step);
    for (const int64_t step : sampled_steps(path))
      if (step > resumed_step) fs::remove(sample_path(path, step));
    MadeFolders folders;
    folders.make(fs::path(run.checkpoint_path()));
    folders.keep();
    run.open_metrics();
    write_file_atomically(run.job_path(), job_text);
  } catch (const ConfigError&) {
    throw;
  } catch (const Error& problem) {
    throw ConfigError(problem.what());
  }
  return run;
}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept : path_(std::move(other.path_)), metrics_(std::exchange(other.metrics_, -1)) {}

RunDirectory::~RunDirectory() {
  if (metrics_ >= 0) ::close(metrics_);
}

void RunDirectory::open_metrics() {
  metrics_ = ::open(metrics_path().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  RZ_CONFIG_CHECK(metrics_ >= 0, "{}: cannot be written: {}", metrics_path(), std::strerror(errno));
}

void RunDirectory::drop_metrics_after(int64_t step) const {
  std::string kept;
  bool dropped = false;
  const bool torn = for_each_metrics_line(metrics_path(), [&](const std::string& line, const ordered_json& value) {
    if (value["step"].get<int64_t>() <= step) {
      kept += line + '\n';
    } else {
      dropped = true;
    }
  });
  if (torn || dropped) write_file_atomically(metrics_path(), kept);
}

std::vector<ordered_json> RunDirectory::read_metrics(const std::string& run_path) {
  std::vector<ordered_json> metrics;
  for_each_metrics_line(metrics_path(run_path), [&](const std::string&, const ordered_json& value) { metrics.push_back(value); });
  return metrics;
}

void RunDirectory::append_metrics(const ordered_json& line) {
  RZ_CHECK(line.is_object() && line.contains("step"), "a metrics line without a step: {}", to_text(line, -1));
  const off_t before = ::lseek(metrics_, 0, SEEK_END);
  try {
    write_all(metrics_, to_text(line, -1) + "\n", metrics_path());
  } catch (...) {
    if (before >= 0 && ::ftruncate(metrics_, before) != 0) {
      // Nothing more can be done here; a torn last line is dropped on resume.
    }
    throw;
  }
}

bool RunDirectory::has_summary() const {
  std::error_code error;
  return fs::exists(summary_path(), error);
}

void RunDirectory::write_summary(const ordered_json& summary) const { write_file_atomically(summary_path(), to_text(summary, 2) + "\n"); }

std::string samples_directory(const std::string& run_path) { return run_path + "/samples"; }

std::string sample_path(const std::string& run_path, int64_t step) { return fmt::format("{}/step-{:08}.png", samples_directory(run_path), step); }

std::vector<int64_t> sampled_steps(const std::string& run_path) {
  std::vector<int64_t> steps;
  std::error_code error;  // no folder: no samples
  for (const auto& entry : std::filesystem::directory_iterator(samples_directory(run_path), error)) {
    int64_t step = 0;
    char rest = 0;
    if (std::sscanf(entry.path().filename().c_str(), "step-%8" SCNd64 ".pn%c", &step, &rest) == 2 && entry.path() == sample_path(run_path, step)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace rz::tools
