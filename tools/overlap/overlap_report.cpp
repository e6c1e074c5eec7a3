#include "tools/overlap/overlap_report.h"

#include <algorithm>
#include <numeric>
#include <ranges>
#include <utility>

#include "tools/overlap/quantile.h"
#include "tools/plan.h"

namespace rz::tools {

namespace {

constexpr size_t kMostNamed = 4;  // ranks or buckets in a line

// Who is to blame for how much, over all buckets of a rank.
std::vector<std::pair<std::pair<Cause, std::string>, double>> blame(const std::vector<BucketMeans>& buckets) {
  std::map<std::pair<Cause, std::string>, double> sums;
  for (const BucketMeans& b : buckets)
    for (const auto& [cause, ms] : b.causes) sums[cause] += ms;
  std::vector<std::pair<std::pair<Cause, std::string>, double>> sorted(sums.begin(), sums.end());
  std::ranges::stable_sort(sorted, std::ranges::greater{}, [](const auto& entry) { return entry.second; });
  return sorted;
}

const BucketMeans* find(const std::vector<BucketMeans>& buckets, const std::string& name, Purpose purpose) {
  for (const BucketMeans& b : buckets)
    if (b.bucket == name && b.purpose == purpose) return &b;
  return nullptr;
}

nlohmann::ordered_json causes_json(const std::array<double, kCauses>& by_cause) {
  nlohmann::ordered_json json;
  for (size_t c = 0; c < kCauses; ++c) json[name(static_cast<Cause>(c))] = by_cause[c];
  return json;
}

nlohmann::ordered_json rank_json(const RunAccount& account, int rank) {
  const RankMeans m = means_of(account, rank);
  nlohmann::ordered_json json;
  json["rank"] = rank;
  json["step_ms"] = m.step_ms;
  json["median_step_ms"] = m.median_step_ms;
  json["compute_ms"] = m.compute_ms;
  for (const auto a : {trace::Activity::forward, trace::Activity::backward, trace::Activity::optimizer})
    json[fmt::format("{}_ms", name(a))] = m.activity_ms[static_cast<size_t>(a)];
  json["communication_ms"] = m.communication_ms;
  json["exposed_ms"] = m.exposed_ms;
  json["hidden_fraction"] = m.hidden_fraction;
  json["other_ms"] = m.other_ms;
  json["data_ms"] = m.activity_ms[static_cast<size_t>(trace::Activity::data)];
  json["ideal_ms"] = m.ideal_ms();
  json["gap_ms"] = m.step_ms - m.ideal_ms();
  json["sent_bytes"] = m.sent_bytes;
  json["bus_bytes_per_s"] = m.communication_ms > 0 ? m.sent_bytes / (m.communication_ms * 1e-3) : 0.0;
  json["exposed_by_cause"] = causes_json(m.exposed_by_cause);
  json["buckets"] = nlohmann::ordered_json::array();
  const auto buckets = buckets_of(account, rank);
  for (const BucketMeans& b : buckets) {
    nlohmann::ordered_json row;
    row["bucket"] = b.bucket;
    row["purpose"] = name(b.purpose);
    row["bytes"] = b.bytes;
    row["transfer_ms"] = b.transfer_ms;
    row["hidden_ms"] = b.hidden_ms;
    row["exposed_ms"] = b.exposed_ms;
    row["bus_bytes_per_s"] = b.bus_bytes_per_s;
    row["causes"] = nlohmann::ordered_json::array();
    for (const auto& [cause, ms] : b.causes) row["causes"].push_back({{"cause", name(cause.first)}, {"who", cause.second}, {"ms", ms}});
    json["buckets"].push_back(std::move(row));
  }
  json["blame"] = nlohmann::ordered_json::array();
  for (const auto& [cause, ms] : blame(buckets)) json["blame"].push_back({{"cause", name(cause.first)}, {"who", cause.second}, {"ms", ms}});
  json["steps"] = nlohmann::ordered_json::array();
  for (const StepAccount& a : account.ranks[static_cast<size_t>(rank)]) {
    nlohmann::ordered_json step;
    step["step"] = a.step + 1;  // as in metrics.jsonl
    step["step_ms"] = to_ms(a.step_ns);
    step["compute_ms"] = to_ms(a.compute_ns());
    step["exposed_ms"] = to_ms(a.exposed_ns);
    step["other_ms"] = to_ms(a.other_ns());
    step["communication_ms"] = to_ms(a.communication_ns);
    step["hidden_fraction"] = a.hidden_fraction();
    std::array<double, kCauses> by_cause{};
    for (size_t c = 0; c < kCauses; ++c) by_cause[c] = to_ms(a.exposed_by_cause[c]);
    step["exposed_by_cause"] = causes_json(by_cause);
    json["steps"].push_back(std::move(step));
  }
  return json;
}

// A reduction that the end of backward waits for: a smaller last bucket leaves less to wait for.
std::string advise_smaller_bucket(const std::vector<BucketMeans>& buckets, const std::string& late, double ms) {
  const BucketMeans* b = find(buckets, late, Purpose::reduce);
  if (b == nullptr) return {};
  constexpr double kMiB = 1 << 20;
  double target = b->bytes;
  // Down to where the time of a transfer is a few percent of what it was, but no message gets tiny.
  while (target > 256 * 1024 && target > b->bytes / 8) target /= 2;
  if (target >= b->bytes) return {};
  return fmt::format(
      "bucket {} of {:.2f} MiB becomes ready when there is little left to compute: buckets of {:.2f} MiB would hide about {:.1f} ms more "
      "(sharding.bucket_mb, or auto)",
      late, b->bytes / kMiB, target / kMiB, ms * (1 - target / b->bytes));
}

// A straggler shows on the ranks that wait for it, not on itself; and on none where the link is the limit, so that its own times count, too.
std::string advise_on_stragglers(const RunAccount& account, double step_ms) {
  std::map<std::string, double> waited_for;
  for (int r = 0; r < account.size; ++r)
    for (const auto& [cause, ms] : blame(buckets_of(account, r)))
      if (cause.first == Cause::straggler) waited_for[cause.second] = std::max(waited_for[cause.second], ms);
  const Stragglers& slow = account.stragglers;
  std::string who, effect;
  if (!slow.ranks.empty()) {
    for (const Stragglers::Slow& s : slow.ranks | std::views::take(kMostNamed))
      who += fmt::format("{}rank {}", who.empty() ? "" : ", ", s.rank);
    if (slow.ranks.size() > kMostNamed) who += fmt::format(" and {} more", slow.ranks.size() - kMostNamed);
    const double worst_ms = slow.ranks.front().busy_ms;
    effect = fmt::format("busy {:.1f} ms of a step, {:.0f} % longer than others", worst_ms, 100 * (worst_ms / slow.usual_ms - 1));
    effect += slow.saved_ms ? fmt::format("; at their speed a step of {:.1f} ms would take {:.1f} ms less (simulated)", step_ms, *slow.saved_ms)
                            : fmt::format("; what that costs could not be simulated: {}", slow.not_simulated);
    if (const double waited = waited_for[fmt::format("rank {}", slow.ranks.front().rank)]; waited > 0)
      effect += fmt::format("; others wait {:.1f} ms for it", waited);
  } else {
    const auto most = std::ranges::max_element(waited_for, {}, [](const auto& e) { return e.second; });
    if (most == waited_for.end() || most->second <= 0.05 * step_ms) return {};
    who = most->first;
    effect = fmt::format("others wait {:.1f} ms of each step of {:.1f} ms for it", most->second, step_ms);
  }
  return fmt::format("straggler: {}: {}; see its machine's load, threads and share of the batch", who, effect);
}

nlohmann::ordered_json stragglers_json(const Stragglers& stragglers) {
  nlohmann::ordered_json json;
  json["usual_rank"] = stragglers.usual_rank;
  json["usual_busy_ms"] = stragglers.usual_ms;
  json["ranks"] = nlohmann::ordered_json::array();
  for (const Stragglers::Slow& slow : stragglers.ranks) json["ranks"].push_back({{"rank", slow.rank}, {"busy_ms", slow.busy_ms}});
  if (stragglers.saved_ms) json["saved_ms"] = *stragglers.saved_ms;
  if (!stragglers.not_simulated.empty()) json["not_simulated"] = stragglers.not_simulated;
  return json;
}

}  // namespace

double RankMeans::ideal_ms() const { return std::max(compute_ms, communication_ms) + other_ms; }

RankMeans means_of(const RunAccount& account, int rank) {
  const auto& steps = account.ranks.at(static_cast<size_t>(rank));
  const auto n = static_cast<double>(steps.size());
  RankMeans m;
  m.rank = rank;
  double hidden_ms = 0;
  std::vector<double> times;
  for (const StepAccount& a : steps) {
    times.push_back(to_ms(a.step_ns));
    m.step_ms += to_ms(a.step_ns) / n;
    m.compute_ms += to_ms(a.compute_ns()) / n;
    for (size_t i = 0; i < a.activity_ns.size(); ++i) m.activity_ms[i] += to_ms(a.activity_ns[i]) / n;
    m.communication_ms += to_ms(a.communication_ns) / n;
    m.exposed_ms += to_ms(a.exposed_ns) / n;
    m.other_ms += to_ms(a.other_ns()) / n;
    m.sent_bytes += static_cast<double>(a.sent_bytes) / n;
    for (size_t c = 0; c < kCauses; ++c) m.exposed_by_cause[c] += to_ms(a.exposed_by_cause[c]) / n;
    hidden_ms += to_ms(a.hidden_ns) / n;
  }
  m.median_step_ms = median(times);
  if (m.communication_ms > 0) m.hidden_fraction = hidden_ms / m.communication_ms;
  return m;
}

std::vector<BucketMeans> buckets_of(const RunAccount& account, int rank) {
  const auto& steps = account.ranks.at(static_cast<size_t>(rank));
  const auto n = static_cast<double>(steps.size());
  std::vector<BucketMeans> buckets;
  for (const StepAccount& a : steps) {
    for (const CollectiveAccount& c : a.collectives) {
      auto found = std::ranges::find_if(buckets, [&](const BucketMeans& b) { return b.bucket == c.bucket && b.purpose == c.purpose; });
      if (found == buckets.end()) {
        buckets.push_back({.bucket = c.bucket, .purpose = c.purpose});
        found = buckets.end() - 1;
      }
      found->exposed_ms += to_ms(c.exposed_ns()) / n;
      for (const Exposure& e : c.exposed) found->causes[{e.cause, e.who}] += to_ms(e.ns) / n;
      if (!c.issued_here) continue;
      found->bytes = static_cast<double>(c.operation.bytes);
      found->transfer_ms += to_ms(c.transfer_ns()) / n;
      found->hidden_ms += to_ms(c.hidden_ns) / n;
      found->bus_bytes_per_s += static_cast<double>(c.operation.sent_bytes) / n;
    }
  }
  for (BucketMeans& b : buckets) b.bus_bytes_per_s = b.transfer_ms > 0 ? b.bus_bytes_per_s / (b.transfer_ms * 1e-3) : 0;
  return buckets;
}

std::vector<std::string> advice_on(const RunAccount& account, const ringzero::Job& job) {
  const int rank = account.critical_rank();
  const RankMeans m = means_of(account, rank);
  const auto buckets = buckets_of(account, rank);
  if (account.size == 1) return {"one rank communicates with nobody: there is nothing to overlap"};
  std::vector<std::string> advice;
  if (!job.sharding().overlap()) {
    advice.push_back(fmt::format("sharding.overlap is off: on, up to {:.1f} ms of a step of {:.1f} ms would be hidden",
                                 std::min(m.exposed_ms, m.compute_ms), m.step_ms));
    return advice;
  }
  if (std::string sentence = advise_on_stragglers(account, m.step_ms); !sentence.empty()) advice.push_back(std::move(sentence));
  std::array<bool, kCauses> said{};
  for (const auto& [cause, ms] : blame(buckets)) {
    if (ms < 0.02 * m.step_ms) break;
    if (std::exchange(said[static_cast<size_t>(cause.first)], true)) continue;
    switch (cause.first) {
      case Cause::gradient_late: {
        std::string sentence = advise_smaller_bucket(buckets, cause.second, ms);
        if (sentence.empty())
          sentence =
              fmt::format("bucket {} becomes ready last, and {:.1f} ms of its reduction have nothing to hide behind", cause.second, ms);
        advice.push_back(std::move(sentence));
        break;
      }
      case Cause::prefetch_late: {
        const bool whole_unit = cause.second.find(" part ") == std::string::npos;
        advice.push_back(
            find(buckets, cause.second, Purpose::gather) != nullptr
                ? fmt::format("{:.1f} ms of gathering {} come too late: sharding.prefetch {} would begin them earlier", ms, cause.second,
                              job.sharding().prefetch() + 1)
                : fmt::format("{:.1f} ms of publishing {} have nothing to hide behind: it is needed right after its update{}", ms,
                              cause.second,
                              whole_unit ? "; in smaller buckets its layers would not wait for one another (sharding.bucket_mb)" : ""));
        break;
      }
      case Cause::link_bound:
        advice.push_back(
            fmt::format("the link is the limit: {:.1f} ms of communication beside {:.1f} ms of compute; accumulate more micro-batches, "
                        "shard within groups, or reduce in 16 bit",
                        m.communication_ms, m.compute_ms));
        break;
      case Cause::queued_behind:
        advice.push_back(fmt::format(
            "{:.1f} ms were spent behind the transfer of {}, which is needed later: smaller buckets let urgent ones pass sooner", ms,
            cause.second));
        break;
      case Cause::slow_link:
        advice.push_back(fmt::format("the link {} costs {:.1f} ms of each step", cause.second, ms));
        break;
      case Cause::progress_starved:
        advice.push_back(fmt::format(
            "the progress thread of {} waited {:.1f} ms for a core: leave it one (training.threads, ranks per machine)", cause.second, ms));
        break;
      case Cause::straggler:
      case Cause::synchronization:
        break;
    }
  }
  if (advice.empty()) advice.push_back(fmt::format("nothing to gain: {:.1f} ms of {:.1f} ms are exposed", m.exposed_ms, m.step_ms));
  return advice;
}

nlohmann::ordered_json overlap_json(const RunAccount& account, const ringzero::Job& job) {
  nlohmann::ordered_json json;
  json["name"] = job.name();
  json["ranks"] = account.size;
  json["stage"] = job.sharding().stage();
  json["overlap"] = job.sharding().overlap();
  json["first_step"] = account.steps.front() + 1;
  json["last_step"] = account.steps.back() + 1;
  json["slow_link"] = account.slow_link;
  json["stragglers"] = stragglers_json(account.stragglers);
  json["critical"] = rank_json(account, account.critical_rank());
  json["per_rank"] = nlohmann::ordered_json::array();
  for (int r = 0; r < account.size; ++r) json["per_rank"].push_back(rank_json(account, r));
  json["advice"] = advice_on(account, job);
  return json;
}

std::string overlap_text(const RunAccount& account, const ringzero::Job& job) {
  const int critical = account.critical_rank();
  std::string text =
      fmt::format("{}: {} ranks, stage {}, overlap {}, steps {} to {}; times in ms, means of a step\n\n", job.name(), account.size,
                  job.sharding().stage(), job.sharding().overlap() ? "on" : "off", account.steps.front() + 1, account.steps.back() + 1);
  text += fmt::format("  {:<6}{:>10} ={:>10} +{:>10} +{:>8}{:>15}{:>9}{:>10}{:>9}\n", "rank", "step", "compute", "exposed", "other",
                      "communication", "hidden", "ideal", "gap");
  for (int r = 0; r < account.size; ++r) {
    const RankMeans m = means_of(account, r);
    text += fmt::format("  {:<6}{:>10.3f}  {:>10.3f}  {:>10.3f}  {:>8.3f}{:>15.3f}{:>8.1f}%{:>10.3f}{:>9.3f}{}\n", r, m.step_ms,
                        m.compute_ms, m.exposed_ms, m.other_ms, m.communication_ms, 100 * m.hidden_fraction, m.ideal_ms(),
                        m.step_ms - m.ideal_ms(), r == critical ? "  critical" : "");
  }
  text += fmt::format(
      "\nRank {}, by bucket, in the order of issue:\n\n  {:<24}{:<10}{:>12}{:>10}{:>10}{:>10}{:>14}  causes of what was exposed\n",
      critical, "bucket", "for", "size", "transfer", "hidden", "exposed", "bus");
  const auto buckets = buckets_of(account, critical);
  for (const BucketMeans& b : buckets) {
    std::string causes;
    for (const auto& [cause, ms] : b.causes)
      if (ms >= 0.001) causes += fmt::format("{}{} {:.3f} ({})", causes.empty() ? "" : ", ", name(cause.first), ms, cause.second);
    text += fmt::format("  {:<24}{:<10}{:>12}{:>10.3f}{:>10.3f}{:>10.3f}{:>12}/s  {}\n", b.bucket, name(b.purpose), format_bytes(b.bytes),
                        b.transfer_ms, b.hidden_ms, b.exposed_ms, format_bytes(b.bus_bytes_per_s), causes);
  }
  text += "\nCauses of what rank " + std::to_string(critical) + " waited:\n\n";
  constexpr double kWorthALine = 0.002;  // of a step
  const RankMeans m = means_of(account, critical);
  const auto blamed = blame(buckets);
  std::vector<size_t> causes(kCauses);
  std::iota(causes.begin(), causes.end(), size_t{0});
  std::ranges::stable_sort(causes, std::ranges::greater{}, [&](size_t c) { return m.exposed_by_cause[c]; });
  for (const size_t c : causes) {
    if (m.exposed_by_cause[c] <= kWorthALine * m.step_ms) break;
    std::string who;
    size_t named = 0;
    for (const auto& [cause, ms] : blamed)
      if (cause.first == static_cast<Cause>(c) && named++ < kMostNamed) who += fmt::format("{}{} {:.3f}", who.empty() ? "" : ", ", cause.second, ms);
    if (named > kMostNamed) who += fmt::format(" and {} more", named - kMostNamed);
    text += fmt::format("  {:>10.3f}  {:<18}{}\n", m.exposed_by_cause[c], name(static_cast<Cause>(c)), who);
  }
  if (!account.slow_link.empty()) text += fmt::format("\nA link stands out: {}\n", account.slow_link);
  text += "\n";
  for (const std::string& sentence : advice_on(account, job)) text += "  * " + sentence + "\n";
  return text;
}

}  // namespace rz::tools
