#include "tools/memory_fit.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace rz::tools {

namespace {

constexpr int64_t kWidthStep = 16;
constexpr int64_t kLeastHeadWidth = 32;
constexpr int64_t kWidthPerLayer = 64;
constexpr int64_t kMostSteps = int64_t{1} << 16;  // widths to 2^20

int64_t planned_peak(const ringzero::Job& job, int ranks) { return make_plan(job, {.ranks = ranks}).memory.peak.total; }

int64_t head_width(int64_t width) {
  for (int64_t w = kLeastHeadWidth; w <= width / 2; w += 2)
    if (width % w == 0) return w;
  return width;
}

}  // namespace

ringzero::Job family_member(const ringzero::Job& given, int64_t width) {
  ringzero::Job job = given;
  auto& model = *job.mutable_transformer();
  model.set_width(width);
  model.set_layers(std::max<int64_t>(1, (width + kWidthPerLayer / 2) / kWidthPerLayer));
  model.set_heads(width / head_width(width));
  model.set_kv_heads(0);
  model.set_mlp_width(0);
  return job;
}

std::optional<Fit> fit_largest(const ringzero::Job& given, int ranks, int64_t stage, int64_t steps, int64_t limit_bytes) {
  RZ_CONFIG_CHECK(given.has_transformer(), "the largest model that fits is sought among Transformers; {} has none", given.name());
  const auto job_of = [&](int64_t size) { return job_of_cell(family_member(given, size * kWidthStep), ranks, stage, steps); };
  const auto fits = [&](int64_t size) { return planned_peak(job_of(size), ranks) <= limit_bytes; };
  if (!fits(1)) return std::nullopt;
  // Memory grows with the width: double until it does not fit, then halve the interval.
  int64_t good = 1;
  int64_t bad = 2;
  while (bad <= kMostSteps && fits(bad)) good = bad, bad *= 2;
  while (bad - good > 1) {
    const int64_t middle = (good + bad) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  Fit fit;
  fit.stage = stage;
  fit.job = job_of(good);
  fit.width = fit.job.transformer().width();
  fit.layers = fit.job.transformer().layers();
  fit.heads = fit.job.transformer().heads();
  fit.cell = predict_cell(fit.job, ranks, true);
  return fit;
}

int64_t parse_bytes(const std::string& text) {
  struct Unit {
    const char* name;
    double bytes;
  };
  constexpr std::array<Unit, 10> kUnits = {{{"", 1}, {"B", 1}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"KiB", 1024.0},
                                            {"MiB", 1048576.0}, {"GiB", 1073741824.0}}};
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  while (end != nullptr && *end == ' ') ++end;
  if (end != text.c_str() && std::isfinite(value) && value > 0)
    for (const Unit& unit : kUnits)
      if (std::string(end) == unit.name && value * unit.bytes < 9e18) return static_cast<int64_t>(value * unit.bytes);
  throw ConfigError(fmt::format("'{}' is no size; valid: a positive number of B, kB, MB, GB, TB, KiB, MiB or GiB, as in 256MB", text));
}

std::string what_would_fit(const ringzero::Job& given, int ranks, int64_t limit_bytes) {
  try {
    const int64_t stage = given.sharding().stage();
    const int64_t micros = given.training().accumulate();
    const int64_t share = std::max<int64_t>(1, given.training().batch() / ranks);
    using Recompute = ringzero::Training::Recompute;
    const Recompute recompute = given.training().recompute();
    const auto peak_of = [&](int64_t s, int64_t m, Recompute r) {
      ringzero::Job job = given;
      job.mutable_sharding()->set_stage(s);
      job.mutable_training()->set_accumulate(m);
      job.mutable_training()->set_recompute(r);
      return planned_peak(job, ranks);
    };
    std::string lines;
    int64_t least = peak_of(stage, micros, recompute);
    std::string least_how = "the job as it is";
    const auto consider = [&](const std::string& how, int64_t s, int64_t m, Recompute r) {
      const int64_t peak = peak_of(s, m, r);
      if (peak < least) least = peak, least_how = how;
      if (peak > limit_bytes) return false;
      lines += fmt::format("  {:<48} peak {}\n", how, format_bytes(static_cast<double>(peak)));
      return true;
    };
    for (int64_t s = stage + 1; s <= 3; ++s)
      if (consider(fmt::format("--stage {}", s), s, micros, recompute)) break;
    std::vector<Recompute> more;  // that this network has
    if (given.has_transformer()) more.push_back(ringzero::Training::SELECTIVE);
    if (!given.has_classifier()) more.push_back(ringzero::Training::FULL);
    for (const Recompute r : more)
      if (r != recompute && consider(fmt::format("--recompute {}", ringzero::Training::Recompute_Name(r)), stage, micros, r)) break;
    for (int64_t m = micros * 2; m <= share; m *= 2)
      if (consider(fmt::format("--accumulate {} (smaller micro-batches)", m), stage, m, recompute)) break;
    if (lines.empty() && !more.empty())
      for (int64_t m = micros; m <= share; m *= 2)
        if (consider(fmt::format("--stage 3 --recompute FULL --accumulate {}", m), 3, m, ringzero::Training::FULL)) break;
    if (!lines.empty()) return "what would fit:\n" + lines;
    return fmt::format("no stage, recomputation or micro-batch fits; {} comes nearest with a peak of {}: take a smaller model or more ranks\n", least_how,
                       format_bytes(static_cast<double>(least)));
  } catch (const std::exception& e) {
    return fmt::format("what would fit cannot be said: {}\n", e.what());
  }
}

}  // namespace rz::tools
