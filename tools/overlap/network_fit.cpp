#include "tools/overlap/network_fit.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "runtime/core/error.h"

namespace rz::tools {

namespace {

// What is tried first: half decades.
constexpr double kLeastMessageNs = 30, kMostMessageNs = 30e6;
constexpr double kLeastByteNs = 1e-3, kMostByteNs = 1e3;
constexpr double kFirstFactor = 3.1623;
constexpr double kLastFactor = 1.005;
constexpr int kReach = 2;                 // grid points to each side, in refinements
constexpr size_t kMostCollectives = 300;  // looked at

struct Point {
  double message_ns = 0;
  double byte_ns = 0;
};

// Minimizes over a grid, then over finer ones about the best: the function has corners and valleys in which descents get stuck.
Point search(const std::function<double(Point)>& f) {
  Point best;
  double least = std::numeric_limits<double>::infinity();
  const auto look_at = [&](Point p) {
    if (const double value = f(p); value < least) least = value, best = p;
  };
  for (double message = kLeastMessageNs; message <= kMostMessageNs; message *= kFirstFactor)
    for (double byte = kLeastByteNs; byte <= kMostByteNs; byte *= kFirstFactor) look_at({message, byte});
  for (double factor = std::sqrt(kFirstFactor); factor > kLastFactor; factor = std::sqrt(factor)) {
    const Point middle = best;
    for (int i = -kReach; i <= kReach; ++i)
      for (int j = -kReach; j <= kReach; ++j) look_at({middle.message_ns * std::pow(factor, i), middle.byte_ns * std::pow(factor, j)});
  }
  return best;
}

// Simulated over recorded duration of each collective.
std::vector<double> ratios(const std::vector<RecordedCollective>& collectives, const comm::NetworkSpec& spec, int ranks, MessageCost cost) {
  VirtualNetwork network(spec, ranks, cost);
  std::vector<double> out;
  std::vector<int64_t> done;
  for (const RecordedCollective& c : collectives) {
    done.resize(c.begin_ns.size());
    network.run(c.operation, c.first, c.begin_ns, done);
    const int64_t simulated = *std::ranges::max_element(done) - *std::ranges::max_element(c.begin_ns);
    out.push_back(static_cast<double>(std::max<int64_t>(simulated, 1)) / static_cast<double>(std::max<int64_t>(c.duration_ns(), 1)));
  }
  return out;
}

double mean_abs_log(const std::vector<double>& ratios) {
  double sum = 0;
  for (const double r : ratios) sum += std::abs(std::log(r));
  return ratios.empty() ? 0 : sum / static_cast<double>(ratios.size());
}

// Evenly from the run.
std::vector<RecordedCollective> some_of(const std::vector<RecordedCollective>& all) {
  const size_t every = 1 + all.size() / kMostCollectives;
  std::vector<RecordedCollective> out;
  // Steps repeat: a stride that does not divide their length meets all of their collectives.
  for (size_t i = 0; i < all.size(); i += every) out.push_back(all[(i * 7919) % all.size()]);
  std::ranges::sort(out, {}, [](const RecordedCollective& c) { return *std::ranges::max_element(c.begin_ns); });
  return out;
}

comm::NetworkSpec network_of(Point p) {
  comm::NetworkSpec out;
  out.inside = out.between = {.bytes_per_s = 1e9 / p.byte_ns, .latency_s = p.message_ns * 1e-9};
  return out;
}

}  // namespace

int64_t RecordedCollective::duration_ns() const { return *std::ranges::max_element(done_ns) - *std::ranges::max_element(begin_ns); }

std::vector<RecordedCollective> collectives_of(const RunTrace& trace) {
  std::map<std::pair<uint32_t, uint64_t>, RecordedCollective> found;
  std::map<std::pair<uint32_t, uint64_t>, size_t> complete;
  for (int r = 0; r < trace.size(); ++r) {
    const RankTrace& t = trace.ranks[static_cast<size_t>(r)];
    for (const trace::Step& step : t.steps) {
      for (const trace::Operation& o : step.operations) {
        const auto& members = t.groups.at(o.group);
        const auto place = std::ranges::find(members, r) - members.begin();
        const std::pair key{o.group, o.sequence};
        RecordedCollective& c = found[key];
        if (c.begin_ns.empty()) {
          c.operation.kind = static_cast<comm::CollectiveKind>(o.kind);
          c.operation.order = static_cast<comm::Order>(o.order);
          c.operation.bytes = o.bytes;
          c.operation.group_size = static_cast<int>(members.size());
          c.operation.group_stride = members.size() > 1 ? members[1] - members[0] : 1;
          c.first = members.front();
          c.begin_ns.resize(members.size());
          c.done_ns.resize(members.size());
          c.cpu_ns.resize(members.size());
        }
        RZ_CONFIG_CHECK(static_cast<size_t>(place) < c.begin_ns.size(), "the trace of rank {} names a group of other ranks", r);
        c.begin_ns[static_cast<size_t>(place)] = o.started_ns;
        c.done_ns[static_cast<size_t>(place)] = o.done_ns;
        c.cpu_ns[static_cast<size_t>(place)] = o.cpu_ns;
        ++complete[key];
      }
    }
  }
  std::vector<RecordedCollective> out;
  for (auto& [key, c] : found)
    if (complete[key] == c.begin_ns.size() && c.begin_ns.size() > 1) out.push_back(std::move(c));
  std::ranges::sort(out, {}, [](const RecordedCollective& c) { return *std::ranges::max_element(c.begin_ns); });
  return out;
}

double network_error(const std::vector<RecordedCollective>& collectives, const comm::NetworkSpec& network, int ranks, MessageCost cost) {
  if (collectives.empty()) return 0;
  auto errors = ratios(collectives, network, ranks, cost);
  for (double& e : errors) e = std::abs(e - 1);
  const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
  std::ranges::nth_element(errors, middle);
  return *middle;
}

MessageCost fit_message_cost(const std::vector<RecordedCollective>& all, const comm::NetworkSpec& network, int ranks) {
  if (all.empty()) return {};
  const auto collectives = some_of(all);
  const Point p = search([&](Point q) { return mean_abs_log(ratios(collectives, network, ranks, {q.message_ns, q.byte_ns})); });
  return {p.message_ns, p.byte_ns};
}

MessageCost fit_work(const std::vector<RecordedCollective>& collectives) {
  double mm = 0, mb = 0, bb = 0, mc = 0, bc = 0;  // sums of products of messages, bytes, cpu
  for (const RecordedCollective& c : collectives) {
    const Received r = received(c.operation);
    for (const int64_t cpu_ns : c.cpu_ns) {
      const auto cpu = static_cast<double>(cpu_ns);
      mm += r.messages * r.messages, mb += r.messages * r.bytes, bb += r.bytes * r.bytes;
      mc += r.messages * cpu, bc += r.bytes * cpu;
    }
  }
  if (mm == 0) return {};
  const double determinant = mm * bb - mb * mb;
  // All operations alike, or a line below zero at one end: one number says it all.
  constexpr double kSingular = 1e-9;
  if (determinant > kSingular * mm * bb) {
    const MessageCost both{(mc * bb - bc * mb) / determinant, (bc * mm - mc * mb) / determinant};
    if (both.message_ns >= 0 && both.byte_ns >= 0) return both;
    if (both.message_ns < 0) return {0, bc / bb};
  }
  return {mc / mm, 0};
}

FittedNetwork fit_link(const std::vector<RecordedCollective>& all, int ranks) {
  FittedNetwork out;
  out.operations = static_cast<int64_t>(all.size());
  if (all.empty()) return out;
  const auto collectives = some_of(all);
  const comm::NetworkSpec spec = network_of(search([&](Point p) { return mean_abs_log(ratios(collectives, network_of(p), ranks, {})); }));
  out.link = spec.inside;
  out.error = network_error(collectives, spec, ranks, {});
  return out;
}

}  // namespace rz::tools
