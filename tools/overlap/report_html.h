// RUN_DIR/report.html: a run's account with pictures, as one page. It holds no script and names nothing outside itself (samples are data:
// URIs), and its Content-Security-Policy forbids the browser to fetch anything.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/job.pb.h"
#include "tools/overlap/account.h"
#include "tools/overlap/run_trace.h"

namespace rz::tools {

// What a model of images drew after some step: a PNG file's bytes.
struct SamplePicture {
  int64_t step = 0;
  std::string png;
};

// `metrics`: RunDirectory::read_metrics, for the loss curve; `samples`, ascending by step, are shown below it.
std::string report_html(const RunTrace& run, const RunAccount& account, const ringzero::Job& job, const std::vector<nlohmann::ordered_json>& metrics,
                        const std::vector<SamplePicture>& samples = {});

}  // namespace rz::tools
