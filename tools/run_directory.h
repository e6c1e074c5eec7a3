// A run's folder: job.textproto (the effective job), metrics.jsonl (an object per step), summary.json, checkpoint/.
//
// * Only rank 0 makes one of these; no other rank touches the folder, except its own shards below checkpoint_path().
// * Everything that can be refused is refused before training: an unwritable place, a folder that holds another run.
// * Nothing is half-written: files appear by rename, a metrics line that does not fit on the disk is taken back.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rz::tools {

class RunDirectory {
 public:
  // A new run in `path`, made with its parents when missing. ConfigError when it cannot be written, or when it holds a run
  // (metrics or a checkpoint). On an error nothing that this made stays.
  static RunDirectory create(const std::string& path, const std::string& job_text);
  // Goes on with the run in `path` after `resumed_step` steps: metrics and pictures of later steps, which will be computed again, are dropped.
  // ConfigError when there is no run or its metrics are damaged (a torn last line is not damage).
  static RunDirectory resume(const std::string& path, const std::string& job_text, int64_t resumed_step);

  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory& operator=(RunDirectory&&) = delete;
  ~RunDirectory();

  const std::string& path() const { return path_; }
  std::string job_path() const { return job_path(path_); }
  static std::string job_path(const std::string& run_path) { return run_path + "/job.textproto"; }
  std::string metrics_path() const { return metrics_path(path_); }
  static std::string metrics_path(const std::string& run_path) { return run_path + "/metrics.jsonl"; }
  std::string summary_path() const { return path_ + "/summary.json"; }
  // Where checkpoints go, and where those of an earlier run are to be found.
  std::string checkpoint_path() const { return checkpoint_path(path_); }
  static std::string checkpoint_path(const std::string& run_path) { return run_path + "/checkpoint"; }

  // The objects of a run's metrics.jsonl, without a torn last line. ConfigError when it is missing or damaged.
  static std::vector<nlohmann::ordered_json> read_metrics(const std::string& run_path);

  // Appends a line for a step: an object with an integer "step". Numbers print in their shortest form that reads back the same; what is
  // not finite prints as null. rz::Error when the line cannot be written; the file then ends with the line before.
  void append_metrics(const nlohmann::ordered_json& line);
  bool has_summary() const;
  // Writes summary.json, replacing an older one at once.
  void write_summary(const nlohmann::ordered_json& summary) const;

 private:
  explicit RunDirectory(std::string path) : path_(std::move(path)) {}
  void open_metrics();
  void drop_metrics_after(int64_t step) const;

  std::string path_;
  int metrics_ = -1;
};

// Pictures of what a model of images draws while it is trained: RUN/samples/step-00000500.png.
std::string samples_directory(const std::string& run_path);
std::string sample_path(const std::string& run_path, int64_t step);
// The steps that have one, ascending.
std::vector<int64_t> sampled_steps(const std::string& run_path);

}  // namespace rz::tools
