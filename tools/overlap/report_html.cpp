#include "tools/overlap/report_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tools/chart_drawing.h"
#include "tools/memory_chart.h"
#include "tools/overlap/overlap_report.h"
#include "tools/overlap/report_timeline.h"
#include "tools/plan.h"
#include "tools/progress.h"

namespace rz::tools {

namespace {

using nlohmann::ordered_json;
using trace::Activity;

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--page:#fff;--ink:#1b2027;--soft:#5b6570;--line:#dbe0e6;--box:#f4f6f8}
@media(prefers-color-scheme:dark){:root{--page:#14171c;--ink:#e4e8ec;--soft:#9aa4af;--line:#2e353e;--box:#1c2128}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 28px 48px;max-width:1280px;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,"DejaVu Sans",sans-serif}
h1{font-size:22px;margin:0}h2{font-size:16px;margin:34px 0 6px}
p{margin:4px 0 10px;max-width:1040px}.soft,small{color:var(--soft)}
.figures{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}
.figures div{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:8px 12px;flex:1 1 auto}
.figures b{display:block;font-size:19px;font-weight:600}
.advice li{margin:3px 0;max-width:1000px}
.legend{max-width:none}td .legend{margin:0}.legend span{display:inline-block;margin-right:14px;white-space:nowrap;font-size:12px}
.legend i{display:inline-block;width:11px;height:11px;margin-right:5px;border-radius:2px;vertical-align:-1px}
table{border-collapse:collapse;width:100%;font-size:13px}
th{text-align:right;color:var(--soft);font-weight:500;border-bottom:1px solid var(--line);padding:3px 8px;white-space:nowrap}
td{text-align:right;padding:3px 8px;border-bottom:1px solid var(--line);white-space:nowrap;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.left{text-align:left}
td.wide{width:52%}td.words{text-align:left;white-space:normal}
.bar{display:flex;height:15px}.bar i{display:block;min-width:0}
details{margin:6px 0}summary{cursor:pointer;padding:4px 0}
.lanes,.plot{display:flex}.scroll{flex:1;overflow-x:auto;min-width:0}
.timeline input{margin:0 4px 0 0;vertical-align:-2px}.timeline label{margin-right:12px;font-size:12px}
.names{flex:none}svg text{font-size:11px;fill:var(--soft)}text.rank{font-weight:600;fill:var(--ink)}
.time svg text{fill:#fff}.time :is(.other,.synchronization,.prefetch_late,.queued_behind,.publish)+svg text{fill:#1b2027}
.z4,.z16{display:none}
#z4:checked~.lanes .z4,#z16:checked~.lanes .z4,#z16:checked~.lanes .z16{display:inline}
#z4:checked~.lanes .time{width:400%}#z16:checked~.lanes .time{width:1600%}
rect,path.area{fill:var(--c)}.legend i,.bar i{background:var(--c)}
.odd{fill-opacity:.78}.peers{fill-opacity:.25}
.grid{stroke:var(--line)}.arrow{stroke:var(--ink);opacity:.6}.arrow.back{opacity:.3}#head path{fill:var(--ink)}
.samples{display:flex;flex-wrap:wrap;gap:14px}.samples figure{margin:0}.samples img{display:block;image-rendering:pixelated;width:min(100%,600px)}.samples figcaption{color:var(--soft)}
.plot .drawing{flex:1;min-width:0}.plot svg{display:block}path.curve{fill:none;stroke:var(--c);stroke-width:1.5;vector-effect:non-scaling-stroke}
.forward{--c:#2563b0}.backward{--c:#12806f}.optimizer{--c:#5c8a1e}.data{--c:#6f7884}.other{--c:#b4bac2}
.reduce{--c:#6f42c1}.gather{--c:#9a5bd8}.publish{--c:#a98ae6}.scalars{--c:#45356f}.hidden{--c:#8fb8a8}
.gradient_late{--c:#d63b2f}.prefetch_late{--c:#ee8420}.link_bound{--c:#8f3b1b}.queued_behind{--c:#d0a000}
.slow_link{--c:#c2257a}.straggler{--c:#7a1333}.synchronization{--c:#e39090}.progress_starved{--c:#8a7a5c}
.loss{--c:#2563b0}.validation{--c:#d63b2f}
)";

// RFC 4648, section 4.
std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += i + k > bytes.size() ? '=' : kDigits[group >> (18 - 6 * k) & 63];
  }
  return out;
}

struct Part {
  std::string css;
  double ms = 0;
  std::string title;
};

// Parts beside each other; `scale_ms` fills the cell.
std::string bar(const std::vector<Part>& parts, double scale_ms) {
  std::string html = "<div class=bar>";
  for (const Part& p : parts)
    if (p.ms > 0)
      html += fmt::format("<i class=\"{}\" style=\"width:{:.3f}%\" title=\"{} {}\"></i>", p.css, 100 * p.ms / scale_ms,
                          escaped_xml(p.title), format_ms(p.ms));
  return html + "</div>";
}

std::string plural(int64_t n, const char* word) { return fmt::format("{} {}{}", n, word, n == 1 ? "" : "s"); }

// A chart's frame: lines and numbers from 0 (or `least`) to `most`, ticks of the x axis below. `paths` are drawn in a box of 1000 x 1000.
class Plot {
 public:
  Plot(double from, double to, double least, double most)
      : from_(from), to_(to > from ? to : from + 1), least_(least), most_(most > least ? most : least + 1) {}

  double x(double value) const { return 1000 * (value - from_) / (to_ - from_); }
  double y(double value) const { return 1000 * (most_ - value) / (most_ - least_); }

  template <class FormatY>
  std::string html(const std::string& paths, const char* x_unit, const FormatY& format_y) const {
    constexpr int kHeight = 200;
    constexpr int kTop = 8;
    std::string numbers;
    std::string grid;
    const double step = grid_step(most_ - least_);
    for (double v = std::ceil(least_ / step) * step; v <= most_ + 1e-9 * step; v += step) {
      const double at = kTop + kHeight * y(v) / 1000;
      numbers += fmt::format("<text x=66 y={:.1f} text-anchor=end>{}</text>", at + 4, format_y(v));
      grid += fmt::format("<line class=grid x1=0 x2=\"100%\" y1={0:.1f} y2={0:.1f} />", at);
    }
    std::string ticks;
    const double x_step = grid_step(to_ - from_);
    for (double v = std::ceil(from_ / x_step) * x_step; v <= to_ - x_step / 4; v += x_step)
      ticks += fmt::format("<text x=\"{:.3f}%\" y={}>{:g}{}</text>", x(v) / 10, kTop + kHeight + 16, v, x_unit);
    return fmt::format(
        "<div class=plot><svg width=74 height={0}>{1}</svg><div class=drawing><svg width=\"100%\" height={0}>{2}<svg y={3} width=\"100%\" "
        "height={4} viewBox=\"0 0 1000 1000\" "
        "preserveAspectRatio=none>{5}</svg>{6}</svg></div></div>\n",
        kTop + kHeight + 24, numbers, grid, kTop, kHeight, paths, ticks);
  }

 private:
  double from_, to_, least_, most_;
};

class Report {
 public:
  Report(const RunTrace& run, const RunAccount& account, const ringzero::Job& job, const std::vector<ordered_json>& metrics,
         const std::vector<SamplePicture>& samples)
      : run_(run), account_(account), job_(job), metrics_(metrics), samples_(samples), critical_(account.critical_rank()) {
    for (int r = 0; r < account.size; ++r) means_.push_back(means_of(account, r));
    const auto& steps = account.ranks[static_cast<size_t>(critical_)];
    std::vector<size_t> order(steps.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [&](size_t i) { return steps[i].step_ns; });
    median_ = order[(order.size() - 1) / 2];
  }

  std::string html() const {
    std::string page = "<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
                       "<meta name=viewport content=\"width=device-width\">\n";
    page += fmt::format("<title>{} - overlap</title>\n<style>{}", escaped_xml(job_.name()), kStyle);
    for (size_t c = 0; c < kCategories; ++c)
      page += fmt::format(".{}{{--c:{}}}", name(static_cast<Category>(c)), hex(category_color(static_cast<Category>(c))));
    page += "\n</style>\n<body>\n" + head() + advice();
    page += fmt::format(
        "<h2>A step of median time: step {}</h2>\n<p class=soft>Above: what each rank's main thread did, and the cause of each wait. "
        "Below: its collectives, pale while other ranks "
        "have not begun. Arrows: gradients ready &rarr; reduction &rarr; the end of the wait for it. Rest the pointer on a bar for its "
        "numbers.</p>\n",
        account_.steps[median_] + 1);
    page += timeline_html(run_, account_, median_);
    return page + ranks() + buckets() + memory() + loss() + samples() + causes() + "</body>\n</html>\n";
  }

 private:
  const RankMeans& critical() const { return means_[static_cast<size_t>(critical_)]; }

  static std::string figure(const std::string& value, const char* label) {
    return fmt::format("<div><b>{}</b><small>{}</small></div>\n", value, label);
  }

  std::string head() const {
    const RankMeans& m = critical();
    const auto& s = job_.sharding();
    const auto& link = job_.communication().link();
    std::string html = fmt::format("<h1>{}</h1>\n<p class=soft>{}, stage {}, overlap {}, buckets of {}{}{}; steps {} to {}</p>\n",
                                   escaped_xml(job_.name()), plural(account_.size, "rank"), s.stage(), s.overlap() ? "on" : "off",
                                   s.bucket_mb() > 0 ? fmt::format("{:g} MiB", s.bucket_mb()) : "a unit",
                                   s.stage() == 3 ? fmt::format(", prefetch {}", s.prefetch()) : "",
                                   link.empty() ? "" : fmt::format(", links of {}", escaped_xml(link)), account_.steps.front() + 1,
                                   account_.steps.back() + 1);
    html += fmt::format(
        "<p>A step takes <b>{:.3f} ms = {:.3f} compute + {:.3f} exposed communication + {:.3f} other</b> on rank {}, the critical one "
        "(means).</p>\n",
        m.step_ms, m.compute_ms, m.exposed_ms, m.other_ms, critical_);
    html += "<div class=figures>\n" + figure(format_ms(m.median_step_ms), "step, median") + figure(format_ms(m.compute_ms), "compute") +
            figure(format_ms(m.communication_ms), "communication");
    html += figure(fmt::format("{:.1f} %", 100 * m.hidden_fraction), "of it hidden") + figure(format_ms(m.exposed_ms), "exposed");
    html += figure(format_ms(m.ideal_ms()), "ideal step") + figure(format_ms(m.step_ms - m.ideal_ms()), "gap to the ideal");
    if (m.communication_ms > 0) html += figure(format_bytes(m.sent_bytes / (m.communication_ms * 1e-3)) + "/s", "bus bandwidth");
    if (!metrics_.empty() && metrics_.back().contains("tokens"))
      html += figure(format_quantity(metrics_.back()["tokens"].get<double>() / (m.median_step_ms * 1e-3)), "tokens per second");
    return html + "</div>\n";
  }

  std::string advice() const {
    std::string html = "<h2>Advice</h2>\n<ul class=advice>\n";
    for (const std::string& sentence : advice_on(account_, job_)) html += fmt::format("<li>{}</li>\n", escaped_xml(sentence));
    return html + "</ul>\n";
  }

  std::string not_shown() const {
    const auto shown = static_cast<int>(ranks_shown(account_).size());
    return shown == account_.size
               ? ""
               : fmt::format("<p class=soft>{} of {} ranks are shown; overlap.json holds all.</p>\n", shown, account_.size);
  }

  std::string ranks() const {
    double scale_ms = 0;
    for (const int r : ranks_shown(account_)) scale_ms = std::max(scale_ms, means_[static_cast<size_t>(r)].step_ms);
    std::string html =
        "<h2>Where the time of a step goes</h2>\n<p class=soft>Means over the steps. Ideal: all communication beside all compute.</p>\n" +
        not_shown() +
        "<table><tr><th>rank<th class=left>step<th>step<th>compute<th>exposed<th>other<th>communication<th>hidden<th>ideal</tr>\n";
    for (const int r : ranks_shown(account_)) {
      const RankMeans& m = means_[static_cast<size_t>(r)];
      std::vector<Part> parts;
      for (const Activity a : {Activity::data, Activity::forward, Activity::backward, Activity::optimizer})
        parts.push_back({name(a), m.activity_ms[static_cast<size_t>(a)], name(a)});
      for (size_t c = 0; c < kCauses; ++c)
        parts.push_back({name(static_cast<Cause>(c)), m.exposed_by_cause[c], fmt::format("waits: {}", name(static_cast<Cause>(c)))});
      parts.push_back({"other", m.activity_ms[static_cast<size_t>(Activity::other)], "other"});
      html += fmt::format("<tr><td>{}{}<td class=wide>{}<td>{:.3f}<td>{:.3f}<td>{:.3f}<td>{:.3f}<td>{:.3f}<td>{:.1f}%<td>{:.3f}</tr>\n", r,
                          r == critical_ ? " critical" : "", bar(parts, scale_ms), m.step_ms, m.compute_ms, m.exposed_ms, m.other_ms,
                          m.communication_ms, 100 * m.hidden_fraction, m.ideal_ms());
    }
    return html + "</table>\n";
  }

  std::string buckets() const {
    std::string html =
        "<h2>Hidden and exposed, by bucket</h2>\n<p class=soft>In the order of issue; ms of a step. Exposed time counts all waits for a "
        "collective, before its transfer too.</p>\n" +
        legend_html({"hidden"});
    for (const int r : ranks_shown(account_))
      html += fmt::format("<details{}><summary>rank {}{}</summary>\n{}</details>\n", r == critical_ ? " open" : "", r,
                          r == critical_ ? ", critical" : "", buckets_of_rank(r));
    return html;
  }

  std::string buckets_of_rank(int rank) const {
    const auto buckets = buckets_of(account_, rank);
    double scale_ms = 0;
    for (const BucketMeans& b : buckets) scale_ms = std::max(scale_ms, b.hidden_ms + b.exposed_ms);
    std::string html =
        "<table><tr><th>bucket<th class=left>for<th class=left>hidden, exposed by "
        "cause<th>size<th>transfer<th>hidden<th>exposed<th>bus</tr>\n";
    for (const BucketMeans& b : buckets) {
      std::vector<Part> parts = {{"hidden", b.hidden_ms, "hidden"}};
      for (const auto& [cause, ms] : b.causes)
        parts.push_back({name(cause.first), ms, fmt::format("{} ({})", name(cause.first), cause.second)});
      html += fmt::format("<tr><td>{}<td class=left>{}<td class=wide>{}<td>{}<td>{:.3f}<td>{:.3f}<td>{:.3f}<td>{}/s</tr>\n",
                          escaped_xml(b.bucket), name(b.purpose), bar(parts, scale_ms), format_bytes(b.bytes), b.transfer_ms, b.hidden_ms,
                          b.exposed_ms, format_bytes(b.bus_bytes_per_s));
    }
    return html + "</table>\n";
  }

  std::string memory() const {
    const trace::Step& step = run_.at(critical_, account_.steps[median_]);
    if (step.memory.size() < 2) return "";
    const auto total = [](const trace::MemorySample& s) {
      int64_t sum = 0;
      for (const int64_t bytes : s.bytes) sum += bytes;
      return sum;
    };
    int64_t most = 0;
    for (const auto& s : step.memory) most = std::max(most, total(s));
    const auto ms = [&](int64_t at) { return to_ms(at - step.begin_ns); };
    const Plot plot(0, ms(step.end_ns), 0, static_cast<double>(most));
    std::string paths;
    std::vector<std::string> used;
    std::vector<int64_t> base(step.memory.size(), 0);
    for (size_t c = 0; c < kCategories; ++c) {
      const auto top = [&](size_t i) { return base[i] + step.memory[i].bytes[c]; };
      bool holds = false;
      // Bytes stay until the next sample: the edges are steps.
      std::string upper;
      std::string lower;
      for (size_t i = 0; i < step.memory.size(); ++i) {
        holds = holds || step.memory[i].bytes[c] > 0;
        const double from = plot.x(ms(step.memory[i].time_ns));
        const double to = i + 1 < step.memory.size() ? plot.x(ms(step.memory[i + 1].time_ns)) : from;
        upper += fmt::format("{}{:.2f} {:.2f}H{:.2f}", i == 0 ? "M" : "L", from, plot.y(static_cast<double>(top(i))), to);
        lower = fmt::format("L{:.2f} {:.2f}H{:.2f}", to, plot.y(static_cast<double>(base[i])), from) + lower;
      }
      for (size_t i = 0; i < step.memory.size(); ++i) base[i] = top(i);
      if (!holds) continue;
      used.emplace_back(name(static_cast<Category>(c)));
      paths += fmt::format("<path class=\"area {}\" d=\"{}{}z\"><title>{}</title></path>\n", used.back(), upper, lower, used.back());
    }
    return fmt::format(
               "<h2>Memory over that step</h2>\n<p class=soft>What the ledger of rank {} held whenever its activity changed; at most "
               "{}.</p>\n",
               critical_, format_bytes(static_cast<double>(most))) +
           plot.html(paths, " ms", [](double bytes) { return format_bytes(bytes); }) + legend_html(used);
  }

  std::string loss() const {
    std::vector<std::pair<double, double>> training;
    std::vector<std::pair<double, double>> validation;
    for (const ordered_json& line : metrics_) {
      const auto take = [&](const char* key, auto& to) {
        if (line.contains(key) && line[key].is_number())
          to.emplace_back(line["step"].template get<double>(), line[key].template get<double>());
      };
      take("loss", training);
      take("val_loss", validation);
    }
    if (training.size() < 2) return "";
    double least = std::numeric_limits<double>::max();
    double most = std::numeric_limits<double>::lowest();
    for (const auto* points : {&training, &validation})
      for (const auto& [step, value] : *points) least = std::min(least, value), most = std::max(most, value);
    const Plot plot(training.front().first, training.back().first, least, most);
    const auto curve = [&](const auto& points, const char* css) {
      // No more points than can be told apart: means of neighbours.
      const size_t together = (points.size() + 999) / 1000;
      std::string d;
      for (size_t i = 0; i < points.size(); i += together) {
        const size_t n = std::min(together, points.size() - i);
        double step = 0;
        double value = 0;
        for (size_t j = i; j < i + n; ++j)
          step += points[j].first / static_cast<double>(n), value += points[j].second / static_cast<double>(n);
        d += fmt::format("{}{:.2f} {:.2f}", d.empty() ? "M" : "L", plot.x(step), plot.y(value));
      }
      return d.empty() ? d : fmt::format("<path class=\"curve {}\" d=\"{}\"/>\n", css, d);
    };
    std::string html = fmt::format("<h2>Loss</h2>\n<p class=soft>Training loss of {}, last {:.4f}{}.</p>\n",
                                   plural(static_cast<int64_t>(training.size()), "step"), training.back().second,
                                   validation.empty() ? "" : fmt::format("; validation loss {:.4f}", validation.back().second));
    const auto as_number = [](double v) { return fmt::format("{:g}", v); };
    if (validation.size() < 2) return html + plot.html(curve(training, "loss"), "", as_number);
    return html + plot.html(curve(training, "loss") + curve(validation, "validation"), "", as_number) + legend_html({"loss", "validation"});
  }

  std::string samples() const {
    if (samples_.empty()) return "";
    std::string html = "<h2>Samples</h2>\n<p class=soft>What the model drew after some of its steps, from the same noise each time.</p>\n<div class=samples>\n";
    for (const SamplePicture& s : samples_)
      html += fmt::format("<figure><img alt=\"samples after step {0}\" src=\"data:image/png;base64,{1}\"><figcaption>step {0}</figcaption></figure>\n", s.step, base64(s.png));
    return html + "</div>\n";
  }

  static std::string causes() {
    constexpr std::array<const char*, kCauses> kMeanings = {
        "The reduction was issued so late that it could not have ended in time: too little was left to compute. Names the bucket that was "
        "ready last.",
        "The same of a gather or a publication of weights.",
        "The collective stood in line behind transfers that were needed before it: the link is too slow for so much.",
        "The link was busy with a transfer that is needed later.",
        "The part of a transfer by which the slowest link is slower than the others.",
        "Another rank had not come so far.",
        "Norm and loss, which every rank must know at once.",
        "Queued, but the progress thread had not taken it up; or done, but the main thread did not wake: no core was free.",
    };
    std::string html = "<h2>Causes of exposed time</h2>\n<table>\n";
    for (size_t c = 0; c < kCauses; ++c)
      html += fmt::format("<tr><td>{}<td class=words>{}</tr>\n", legend_html({name(static_cast<Cause>(c))}), kMeanings[c]);
    return html +
           "</table>\n<p class=soft>Hidden: the part of the transfers during which the main thread did not wait. perfetto.json, beside "
           "this file, holds all recorded steps for "
           "ui.perfetto.dev; overlap.json the numbers.</p>\n";
  }

  const RunTrace& run_;
  const RunAccount& account_;
  const ringzero::Job& job_;
  const std::vector<ordered_json>& metrics_;
  const std::vector<SamplePicture>& samples_;
  int critical_;
  std::vector<RankMeans> means_;
  size_t median_ = 0;
};

}  // namespace

std::string report_html(const RunTrace& run, const RunAccount& account, const ringzero::Job& job, const std::vector<ordered_json>& metrics,
                        const std::vector<SamplePicture>& samples) {
  return Report(run, account, job, metrics, samples).html();
}

}  // namespace rz::tools
