#include "tools/overlap/report_timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "comm/types.h"
#include "tools/chart_drawing.h"
#include "tools/plan.h"

namespace rz::tools {

namespace {

constexpr double kWidth = 1000;  // points of the lanes at zoom 1 on a usual window: decides which labels fit
constexpr double kLetter = 6.3;
constexpr int kAxis = 26;
constexpr int kMainHeight = 24;
constexpr int kArrows = 16;  // between a rank's lanes
constexpr int kTransferHeight = 18;
constexpr int kRankHeight = kMainHeight + kArrows + kTransferHeight + 20;
constexpr int kZooms[] = {1, 4, 16};

std::string in_words(std::string name) {
  std::ranges::replace(name, '_', ' ');
  return name;
}

class Timeline {
 public:
  Timeline(const RunTrace& run, const RunAccount& account, size_t index)
      : run_(run), account_(account), index_(index), shown_(ranks_shown(account)) {
    const int64_t number = account.steps[index];
    begin_ns_ = run.at(shown_[0], number).begin_ns;
    end_ns_ = run.at(shown_[0], number).end_ns;
    for (const int r : shown_) {
      begin_ns_ = std::min(begin_ns_, run.at(r, number).begin_ns);
      end_ns_ = std::max(end_ns_, run.at(r, number).end_ns);
    }
  }

  std::string html() {
    const int height = kAxis + static_cast<int>(shown_.size()) * kRankHeight;
    std::string names;
    int top = kAxis;
    axis(height);
    for (const int r : shown_) {
      names += fmt::format("<text class=rank y={}>rank {}{}</text><text y={}>collectives</text>\n", top + 16, r,
                           r == account_.critical_rank() ? ", critical" : "", top + kMainHeight + kArrows + 13);
      draw_rank(r, top);
      top += kRankHeight;
    }
    std::string html = "<div class=timeline>\n";
    for (const int zoom : kZooms)
      html += fmt::format("<input type=radio name=zoom id=z{}{}><label for=z{}>{}&times;</label>\n", zoom, zoom == 1 ? " checked" : "",
                          zoom, zoom);
    html += fmt::format(
        "<div class=lanes><svg class=names width=104 height={}>{}</svg><div class=scroll><svg class=time width=\"100%\" height={}>\n",
        height, names, height);
    html +=
        "<defs><marker id=head viewBox=\"0 0 6 6\" refX=5 refY=3 markerWidth=6 markerHeight=6 orient=auto><path d=\"M0 0L6 3L0 "
        "6z\"/></marker></defs>\n";
    html += svg_ + "</svg></div></div></div>\n";
    std::vector<std::string> used;
    for (const auto& [order, name] : used_) used.push_back(name);
    return html + legend_html(used);
  }

 private:
  double share(int64_t ns) const { return static_cast<double>(ns) / static_cast<double>(end_ns_ - begin_ns_); }
  double x(int64_t at_ns) const { return 100 * std::clamp(share(at_ns - begin_ns_), 0.0, 1.0); }
  static std::string ms(int64_t ns) { return format_ms(to_ms(ns)); }
  std::string when(int64_t from, int64_t to) const {
    return fmt::format("{}, from {} to {}", ms(to - from), ms(from - begin_ns_), ms(to - begin_ns_));
  }

  // Legend entries come in the order of drawing layers: activities, causes, purposes.
  void use(int layer, int at, const char* name) { used_[{layer, at}] = name; }

  // Each zoom adds the lines between those of the one before.
  void axis(int height) {
    const double span_ms = to_ms(end_ns_ - begin_ns_);
    double coarser = 0;
    for (const int zoom : kZooms) {
      const double step = grid_step(span_ms / 2 / zoom);
      for (int i = 0; i * step < span_ms * (1 - 0.04 / zoom); ++i) {  // the last number needs room
        const double t = i * step;
        if (coarser > 0 && std::abs(t - coarser * std::round(t / coarser)) < step / 2) continue;
        svg_ += fmt::format(
            "<line class=\"grid z{3}\" x1=\"{0:.4f}%\" x2=\"{0:.4f}%\" y1=18 y2={1} /><text class=\"tick z{3}\" x=\"{0:.4f}%\" y=12 "
            "dx=2>{2:g} ms</text>\n",
            100 * t / span_ms, height, t, zoom);
      }
      coarser = step;
    }
  }

  // A rectangle with a title that shows when the pointer rests on it, and its label where that fits at some zoom.
  void box(const std::string& css, int64_t from, int64_t to, int y, int height, const std::string& label, const std::string& title) {
    const double width = x(to) - x(from);
    if (width * kWidth / 100 * kZooms[2] < 0.5) return;  // not to be seen
    svg_ += fmt::format("<g><title>{}</title><rect class=\"{}\" x=\"{:.4f}%\" y={} width=\"{:.4f}%\" height={} />", escaped_xml(title), css,
                        x(from), y, width, height);
    const double needed = 6 + kLetter * static_cast<double>(label.size());
    const auto* zoom = std::ranges::find_if(kZooms, [&](int z) { return width * kWidth / 100 * z >= needed; });
    if (!label.empty() && zoom != std::end(kZooms))
      svg_ += fmt::format("<svg class=z{} x=\"{:.4f}%\" y={} width=\"{:.4f}%\" height={}><text x=3 y={}>{}</text></svg>", *zoom, x(from), y,
                          width, height, height - 7, escaped_xml(label));
    svg_ += "</g>\n";
  }

  void arrow(const char* css, int64_t from, int y1, int64_t to, int y2) {
    if (from < begin_ns_ || to > end_ns_) return;
    svg_ += fmt::format("<line class=\"arrow {}\" x1=\"{:.4f}%\" y1={} x2=\"{:.4f}%\" y2={} marker-end=\"url(#head)\" />\n", css, x(from),
                        y1, x(to), y2);
  }

  void draw_rank(int rank, int top) {
    const trace::Step& step = run_.at(rank, account_.steps[index_]);
    const StepAccount& a = account_.ranks[static_cast<size_t>(rank)][index_];
    std::map<uint32_t, size_t> units;  // neighbours differ in shade
    for (const Stretch& s : stretches_of(step)) {
      const std::string& unit = run_.name(rank, s.name);
      use(0, static_cast<int>(s.activity), name(s.activity));
      const size_t number = s.name == trace::kNoName ? 0 : units.try_emplace(s.name, units.size()).first->second;
      box(fmt::format("{}{}", name(s.activity), number % 2 == 1 ? " odd" : ""), s.begin_ns, s.end_ns, top, kMainHeight,
          unit.empty() ? name(s.activity) : unit, fmt::format("{} {}\n{}", name(s.activity), unit, when(s.begin_ns, s.end_ns)));
    }
    const int low = top + kMainHeight + kArrows;
    for (const CollectiveAccount& c : a.collectives) {
      for (const Exposure& e : c.exposed) {
        use(1, static_cast<int>(e.cause), name(e.cause));
        box(name(e.cause), e.begin_ns, e.begin_ns + e.ns, top, kMainHeight, in_words(name(e.cause)),
            fmt::format("waits for {} of {}: {} ({})\n{}", name(c.purpose), c.bucket, in_words(name(e.cause)), e.who,
                        when(e.begin_ns, e.begin_ns + e.ns)));
      }
    }
    for (const CollectiveAccount& c : a.collectives) draw_collective(step, c, top + kMainHeight, low);
  }

  void draw_collective(const trace::Step& step, const CollectiveAccount& c, int upper, int lower) {
    const trace::Operation& o = c.operation;
    if (o.done_ns <= begin_ns_ || o.started_ns >= end_ns_) return;
    use(2, static_cast<int>(c.purpose), name(c.purpose));
    const std::string title =
        fmt::format("{} of {}: {} of {}\nqueued {}, waited for other ranks {}, transferred {}", name(c.purpose), c.bucket,
                    comm::name(static_cast<comm::CollectiveKind>(o.kind)), format_bytes(static_cast<double>(o.bytes)),
                    ms(o.started_ns - o.queued_ns), ms(c.ready_ns - o.started_ns), when(c.ready_ns, o.done_ns));
    box(fmt::format("{} peers", name(c.purpose)), o.started_ns, c.ready_ns, lower, kTransferHeight, "", title);
    box(name(c.purpose), c.ready_ns, o.done_ns, lower, kTransferHeight, c.bucket, title);
    const trace::Event* ready = nullptr;
    const trace::Event* wait = nullptr;
    for (const trace::Event& e : step.events) {
      if (e.kind == trace::Event::Kind::bucket_ready && e.name == o.name && e.begin_ns <= o.queued_ns) ready = &e;
      if (e.kind == trace::Event::Kind::wait && e.value == o.number && wait == nullptr) wait = &e;
    }
    if (ready != nullptr && c.purpose == Purpose::reduce) arrow("", ready->begin_ns, upper, o.started_ns, lower);
    if (wait != nullptr && c.purpose != Purpose::scalars) arrow("back", o.done_ns, lower, wait->end_ns, upper);
  }

  const RunTrace& run_;
  const RunAccount& account_;
  size_t index_;
  std::vector<int> shown_;
  int64_t begin_ns_ = 0;
  int64_t end_ns_ = 0;
  std::string svg_;
  std::map<std::pair<int, int>, std::string> used_;
};

}  // namespace

std::vector<int> ranks_shown(const RunAccount& account) {
  std::vector<int> ranks;
  for (int r = 0; r < std::min(account.size, kRanksShown); ++r) ranks.push_back(r);
  if (const int critical = account.critical_rank(); critical >= kRanksShown) ranks.back() = critical;
  return ranks;
}

std::string timeline_html(const RunTrace& run, const RunAccount& account, size_t index) { return Timeline(run, account, index).html(); }

std::string format_ms(double ms) { return fmt::format("{:.{}f} ms", ms, ms < 10 ? 3 : ms < 1000 ? 1 : 0); }

std::string legend_html(const std::vector<std::string>& classes) {
  std::string html = "<p class=legend>";
  for (const std::string& c : classes) html += fmt::format("<span><i class=\"{}\"></i>{}</span> ", c, in_words(c));
  return html + "</p>\n";
}

}  // namespace rz::tools
