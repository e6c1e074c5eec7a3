#include "comm/link_model.h"

#include <charconv>
#include <cmath>

#include "runtime/core/error.h"
#include "runtime/core/random.h"

namespace rz::comm {

namespace {

constexpr const char* kLinkForm =
    "valid: RATE[,LATENCY[,jitter TIME]] such as 1Gbit,50us or 200MB/s,1ms,jitter 20us, the rate a number with Kbit, Mbit, Gbit, Tbit, "
    "KB/s, MB/s or GB/s, or unlimited; times in ns, us, ms or s; a pair of ranks that differs follows as ;FROM>TO=LINK";
constexpr double kLongestSeconds = 1e9;

// A value in this unit is value x factor / divisor of the base unit.
struct Unit {
  const char* name;
  double factor;
  double divisor;
};
constexpr Unit kRates[] = {{"Kbit", 1e3, 8}, {"Mbit", 1e6, 8}, {"Gbit", 1e9, 8}, {"Tbit", 1e12, 8},
                           {"KB/s", 1e3, 1}, {"MB/s", 1e6, 1}, {"GB/s", 1e9, 1}};
constexpr Unit kTimes[] = {{"ns", 1, 1e9}, {"us", 1, 1e6}, {"ms", 1, 1e3}, {"s", 1, 1}};

// A parameter's name and its whole text, for errors.
struct Source {
  const char* name;
  std::string_view text;

  template <class... Args>
  void require(bool condition, fmt::format_string<Args...> what, Args&&... args) const {
    RZ_CONFIG_CHECK(condition, "{} is '{}': {}; {}", name, text, fmt::format(what, std::forward<Args>(args)...), kLinkForm);
  }
};

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// Cuts off what comes before `mark`, all of it if there is none.
std::string_view next_part(std::string_view& text, char mark) {
  const size_t end = text.find(mark);
  const std::string_view part = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return trimmed(part);
}

template <size_t N>
double parse_quantity(const Source& source, std::string_view part, const Unit (&units)[N], const char* what) {
  double value = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
  const std::string_view unit = trimmed(std::string_view(end, static_cast<size_t>(part.data() + part.size() - end)));
  for (const Unit& u : units) {
    if (error == std::errc() && unit == u.name && std::isfinite(value) && value >= 0) return value * u.factor / u.divisor;
  }
  source.require(false, "'{}' is no {}", part, what);
  return 0;
}

double parse_time(const Source& source, std::string_view part, const char* what) {
  const double seconds = parse_quantity(source, part, kTimes, what);
  source.require(seconds <= kLongestSeconds, "a {} of {} s is too long", what, seconds);
  return seconds;
}

LinkSpec parse_link(const Source& source, std::string_view text) {
  LinkSpec link;
  const std::string_view rate = next_part(text, ',');
  if (rate != "unlimited") link.bytes_per_s = parse_quantity(source, rate, kRates, "rate");
  source.require(link.bytes_per_s >= 1, "the rate '{}' is below 1 byte/s", rate);
  if (!text.empty()) link.latency_s = parse_time(source, next_part(text, ','), "latency");
  if (!text.empty()) {
    std::string_view jitter = next_part(text, ',');
    source.require(jitter.starts_with("jitter"), "'{}' is no jitter", jitter);
    link.jitter_s = parse_time(source, trimmed(jitter.substr(6)), "jitter");
  }
  source.require(text.empty(), "'{}' is too much", text);
  return link;
}

int parse_rank(const Source& source, std::string_view part) {
  int rank = -1;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), rank);
  source.require(error == std::errc() && end == part.data() + part.size() && rank >= 0, "'{}' is no rank", part);
  return rank;
}

NetworkSpec::Exception parse_exception(const Source& source, std::string_view text) {
  NetworkSpec::Exception out;
  source.require(text.find('=') != std::string_view::npos && text.find('>') < text.find('='), "'{}' is no FROM>TO=LINK", text);
  std::string_view pair = next_part(text, '=');
  out.from = parse_rank(source, next_part(pair, '>'));
  out.to = parse_rank(source, trimmed(pair));
  source.require(out.from != out.to, "rank {} has no link to itself", out.from);
  out.link = parse_link(source, text);
  return out;
}

template <size_t N>
std::string with_unit(double value, const Unit (&units)[N]) {
  size_t i = N - 1;
  while (i > 0 && value < units[i].factor / units[i].divisor) --i;
  return fmt::format("{:g}{}", value * units[i].divisor / units[i].factor, units[i].name);
}

}  // namespace

std::string LinkSpec::str() const {
  constexpr Unit bits[] = {kRates[0], kRates[1], kRates[2], kRates[3]};
  std::string out = std::isinf(bytes_per_s) ? "unlimited" : with_unit(bytes_per_s, bits);
  if (latency_s > 0 || jitter_s > 0) out += fmt::format(",{}", with_unit(latency_s, kTimes));
  if (jitter_s > 0) out += fmt::format(",jitter {}", with_unit(jitter_s, kTimes));
  return out;
}

NetworkSpec parse_network(std::string_view link, std::string_view inter_node_link, int64_t nodes) {
  NetworkSpec out;
  RZ_CONFIG_CHECK(nodes >= 1 && nodes <= 1'000'000, "nodes is {}; valid: 1 or more, a divisor of the number of ranks", nodes);
  RZ_CONFIG_CHECK(nodes > 1 || inter_node_link.empty(), "inter_node_link is '{}', but there is one node; valid: nodes 2 or more",
                  inter_node_link);
  RZ_CONFIG_CHECK(nodes == 1 || !link.empty() || !inter_node_link.empty(),
                  "nodes is {}, but no link is given; valid: a link or an inter_node_link", nodes);
  out.nodes = static_cast<int>(nodes);
  if (!link.empty()) {
    const Source source{"link", link};
    std::string_view rest = link;
    out.inside = out.between = parse_link(source, next_part(rest, ';'));
    while (!rest.empty()) out.exceptions.push_back(parse_exception(source, next_part(rest, ';')));
  }
  if (!inter_node_link.empty()) out.between = parse_link({"inter_node_link", inter_node_link}, inter_node_link);
  return out;
}

void NetworkSpec::check_ranks(int ranks) const {
  RZ_CONFIG_CHECK(nodes >= 1 && ranks % nodes == 0, "nodes is {}, which does not divide {} ranks into equal blocks", nodes, ranks);
  for (const Exception& e : exceptions) {
    RZ_CONFIG_CHECK(e.from >= 0 && e.from < ranks && e.to >= 0 && e.to < ranks, "link names ranks {}>{}, but there are {} ranks (0 ... {})",
                    e.from, e.to, ranks, ranks - 1);
  }
}

LinkModel::LinkModel(NetworkSpec network, int ranks) : network_(std::move(network)), ranks_(ranks) { network_.check_ranks(ranks); }

const LinkSpec& LinkModel::link(int from, int to) const {
  for (const NetworkSpec::Exception& e : network_.exceptions) {
    if (e.from == from && e.to == to) return e.link;
  }
  return node_of(from) == node_of(to) ? network_.inside : network_.between;
}

int64_t LinkModel::to_ns(double seconds) { return static_cast<int64_t>(std::llround(std::min(seconds, kLongestSeconds) * 1e9)); }

int64_t LinkModel::transfer_ns(int from, int to, size_t bytes) const {
  return to_ns(static_cast<double>(bytes) / link(from, to).bytes_per_s);
}

int64_t LinkModel::jitter_ns(int from, int to, uint64_t message) const {
  const double jitter = link(from, to).jitter_s;
  if (jitter == 0) return 0;
  const Random random(network_.seed, "link", static_cast<uint64_t>(from), static_cast<uint64_t>(port_kind(from, to)));
  return to_ns(jitter * random.uniform64(message));
}

double ring_pass_s(const LinkSpec& link, int steps, double chunk_bytes, double segment_bytes) {
  if (steps <= 0 || chunk_bytes <= 0) return 0;
  const double chunk_s = chunk_bytes / link.bytes_per_s;
  const double segment_s = std::min(segment_bytes, chunk_bytes) / link.bytes_per_s;
  return chunk_s + link.latency_s + (steps - 1) * std::max(chunk_s, segment_s + link.latency_s);
}

}  // namespace rz::comm
