// A row of predictions that differ in one thing.
#pragma once

#include <string>
#include <vector>

#include "tools/overlap/what_if.h"

namespace rz::tools {

enum class SweepOver : uint8_t { ranks, link, bucket, stage };
const char* name(SweepOver over);

struct SweepPoint {
  std::string label;
  WhatIf what;
  Prediction prediction;
};

struct Sweep {
  SweepOver over = SweepOver::ranks;
  std::vector<SweepPoint> points;

  // With the most tokens per second.
  const SweepPoint& best() const;
};

// `text`: what to vary and, if wanted, over what: "ranks", "ranks=2,4,8", "link=100Mbit,1Gbit" (rates; latencies stay), "bucket=0.5,2"
// (MiB), "stage=1,2"; all else is as in `base`. ConfigError for anything else.
Sweep run_sweep(Predictor& predictor, const WhatIf& base, const std::string& text);

}  // namespace rz::tools
