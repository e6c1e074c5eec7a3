#include "tools/overlap/sweep.h"

#include <algorithm>
#include <charconv>

#include "runtime/core/error.h"

namespace rz::tools {

namespace {

constexpr int kMostSweptRanks = 16'384;
constexpr const char* kRates[] = {"10Mbit", "20Mbit", "50Mbit", "100Mbit", "200Mbit", "500Mbit", "1Gbit",
                                  "2Gbit",  "5Gbit",  "10Gbit", "20Gbit",  "50Gbit",  "100Gbit"};
constexpr const char* kSweeps = "valid: ranks, link, bucket or stage, and after = values separated by commas, such as link=100Mbit,1Gbit";

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    out.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

int parse_ranks(const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  RZ_CONFIG_CHECK(error == std::errc() && end == text.data() + text.size() && value >= 1, "--sweep ranks: '{}' is no number of ranks; {}",
                  text, kSweeps);
  return value;
}

std::vector<std::string> usual_values(Predictor& predictor, const WhatIf& base, SweepOver over) {
  std::vector<std::string> out;
  switch (over) {
    case SweepOver::ranks:
      for (int ranks = static_cast<int>(base.nodes.value_or(predictor.recorded().network.nodes)); ranks <= kMostSweptRanks; ranks *= 2)
        out.push_back(std::to_string(ranks));
      break;
    case SweepOver::link:
      out.assign(std::begin(kRates), std::end(kRates));
      break;
    case SweepOver::bucket:
      for (const double mb : predictor.bucket_candidates(base)) out.push_back(fmt::format("{}", mb));
      break;
    case SweepOver::stage:
      out = {"0", "1", "2", "3"};
      break;
  }
  return out;
}

// The link of `base`, or the recorded one, at another rate.
std::string at_rate(const Predictor& predictor, const WhatIf& base, const std::string& rate) {
  comm::NetworkSpec network = base.link ? comm::parse_network(*base.link) : predictor.recorded().network;
  network.inside.bytes_per_s = comm::parse_network(rate).inside.bytes_per_s;
  std::string out = network.inside.str();
  for (const auto& pair : network.exceptions) out += fmt::format(";{}>{}={}", pair.from, pair.to, pair.link.str());
  return out;
}

WhatIf at(const Predictor& predictor, const WhatIf& base, SweepOver over, const std::string& value) {
  WhatIf what = base;
  switch (over) {
    case SweepOver::ranks:
      what.ranks = parse_ranks(value);
      break;
    case SweepOver::link:
      what.link = at_rate(predictor, base, value);
      break;
    case SweepOver::bucket:
      return with(base, "sharding.bucket_mb=" + value);
    case SweepOver::stage:
      return with(base, "sharding.stage=" + value);
  }
  return what;
}

}  // namespace

const char* name(SweepOver over) {
  constexpr const char* kNames[] = {"ranks", "link", "bucket", "stage"};
  return kNames[static_cast<size_t>(over)];
}

const SweepPoint& Sweep::best() const {
  return *std::ranges::max_element(points, {}, [](const SweepPoint& p) { return p.prediction.run.tokens_per_s; });
}

Sweep run_sweep(Predictor& predictor, const WhatIf& base, const std::string& text) {
  const size_t equals = std::min(text.find('='), text.size());
  Sweep sweep;
  const auto all = {SweepOver::ranks, SweepOver::link, SweepOver::bucket, SweepOver::stage};
  const auto found = std::ranges::find(all, text.substr(0, equals), [](SweepOver o) { return std::string(name(o)); });
  RZ_CONFIG_CHECK(found != all.end(), "--sweep: unknown sweep '{}'; {}", text, kSweeps);
  sweep.over = *found;
  const auto values = equals < text.size() ? split(text.substr(equals + 1)) : usual_values(predictor, base, sweep.over);
  for (const std::string& value : values) {
    SweepPoint point{value, at(predictor, base, sweep.over, value), {}};
    point.prediction = predictor.predict(point.what);
    sweep.points.push_back(std::move(point));
  }
  return sweep;
}

}  // namespace rz::tools
