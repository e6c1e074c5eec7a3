#include "tools/overlap/virtual_network.h"

#include <algorithm>
#include <cmath>

#include "comm/progress.h"
#include "comm/ring.h"
#include "runtime/core/error.h"

namespace rz::tools {

namespace {

using comm::Chunk;
using comm::chunk_of;
using comm::CollectiveKind;

// The trace knows bytes, not elements: flat buffers divide evenly, and scalars are of eight bytes.
size_t element_bytes(uint64_t bytes) {
  for (const size_t e : {8, 4, 2})
    if (bytes % e == 0) return e;
  return 1;
}

size_t segments(size_t bytes, size_t segment) { return (bytes + segment - 1) / segment; }
size_t segment_length(size_t bytes, size_t segment, size_t j) { return std::min(segment, bytes - j * segment); }
size_t segment_bytes() { return comm::ProgressOptions{}.segment_bytes; }
size_t scratch_bytes() { return comm::kRingWindow * segment_bytes(); }
// Of ordered sums of `bytes`, where all peers send at a time. More than scalars are float32, mostly.
size_t ordered_segment_bytes(uint64_t bytes, size_t peers) {
  const size_t element = std::min<size_t>(element_bytes(bytes), 4);
  return comm::ordered_segment_elements(segment_bytes(), scratch_bytes(), element, peers) * element;
}

bool is_gathered(const ScriptOperation& operation) {
  return operation.kind == CollectiveKind::all_reduce && comm::is_gathered(operation.bytes, operation.group_size, scratch_bytes());
}

}  // namespace

Received received(const ScriptOperation& operation) {
  if (operation.group_size == 1) return {};
  const auto peers = static_cast<size_t>(operation.group_size - 1);
  if (is_gathered(operation))
    return {static_cast<double>(1 + comm::gather_turns(operation.group_size)), static_cast<double>(peers * operation.bytes)};
  const size_t chunk = (operation.bytes + peers) / (peers + 1);
  const bool ordered = operation.order == comm::Order::ordered;
  size_t messages = 0;  // from each peer, or from the neighbour in each step
  if (operation.kind != CollectiveKind::all_gather) messages += segments(chunk, ordered ? ordered_segment_bytes(operation.bytes, peers) : segment_bytes());
  if (operation.kind != CollectiveKind::reduce_scatter) messages += segments(chunk, segment_bytes());
  const size_t passes = operation.kind == CollectiveKind::all_reduce ? 2 : 1;
  return {static_cast<double>(1 + peers * messages), static_cast<double>(passes * peers * chunk)};
}

struct VirtualNetwork::Members {
  int first = 0;
  int stride = 1;
  int size = 1;
  int rank(int i) const { return first + i * stride; }
  int right(int i, int distance = 1) const { return (i + distance) % size; }
  int left(int i, int distance = 1) const { return (i - distance % size + size) % size; }
  // Bytes of the chunk of member i.
  size_t chunk_bytes(uint64_t bytes, int i) const {
    const size_t element = element_bytes(bytes);
    return chunk_of(bytes / element, i, size).length() * element;
  }
};

struct VirtualNetwork::Pass {
  int lag = 0;  // in step s member i sends chunk i - lag - s
  int steps = 0;
};

VirtualNetwork::VirtualNetwork(comm::NetworkSpec network, int ranks, MessageCost cost)
    : model_(std::move(network), ranks),
      cost_(cost),
      ports_(static_cast<size_t>(model_.ports())),
      histories_(2 * static_cast<size_t>(ranks)) {}

comm::LinkModel::Departure VirtualNetwork::depart(int from, int to, size_t bytes, int64_t now) {
  auto& history = histories_[2 * static_cast<size_t>(from) + static_cast<size_t>(model_.port_kind(from, to))];
  return model_.depart(ports_[static_cast<size_t>(model_.port_of(from, to))], history, from, to, bytes, now);
}

int64_t VirtualNetwork::arrive(int from, int to, size_t bytes, int64_t first_ns) {
  return model_.arrive(ports_[static_cast<size_t>(model_.port_of(to, from))], from, to, bytes, first_ns);
}

void VirtualNetwork::run(const ScriptOperation& operation, int first, std::span<const int64_t> begin_ns, std::span<int64_t> done_ns) {
  const Members group{first, operation.group_stride, operation.group_size};
  const int n = group.size;
  RZ_CHECK(begin_ns.size() == static_cast<size_t>(n) && done_ns.size() == begin_ns.size(), "{} times for {} ranks", begin_ns.size(), n);
  if (n == 1) {
    done_ns[0] = begin_ns[0];
    return;
  }
  // Fingerprints: everybody waits for its left neighbour's.
  for (int i = 0; i < n; ++i) {
    const int left = group.left(i);
    const int64_t theirs = begin_ns[static_cast<size_t>(left)] + model_.latency_ns(group.rank(left), group.rank(i));
    done_ns[static_cast<size_t>(i)] = std::max(begin_ns[static_cast<size_t>(i)], theirs) + cost_.of(0);
  }
  const bool ordered = operation.order == comm::Order::ordered;
  switch (operation.kind) {
    case CollectiveKind::all_reduce:
      if (is_gathered(operation)) return gather(group, operation.bytes, done_ns);
      if (!ordered) return ring_pass(group, operation.bytes, {1, 2 * (n - 1)}, done_ns);
      ordered_reduce_scatter(group, operation.bytes, done_ns);
      return ring_pass(group, operation.bytes, {0, n - 1}, done_ns);
    case CollectiveKind::reduce_scatter:
      if (ordered) return ordered_reduce_scatter(group, operation.bytes, done_ns);
      return ring_pass(group, operation.bytes, {1, n - 1}, done_ns);
    case CollectiveKind::all_gather:
      return ring_pass(group, operation.bytes, {0, n - 1}, done_ns);
    case CollectiveKind::broadcast:
    case CollectiveKind::barrier:
    case CollectiveKind::probe:
      break;
  }
  RZ_CHECK(false, "a {} within a step", comm::name(operation.kind));
}

// In every turn each member sends all it holds, as much as is still wanted, to one twice as far away as before.
void VirtualNetwork::gather(const Members& group, uint64_t bytes, std::span<int64_t> times) {
  const int n = group.size;
  std::vector<comm::LinkModel::Departure> sent(static_cast<size_t>(n));
  for (int held = 1; held < n; held *= 2) {
    const size_t length = static_cast<size_t>(std::min(held, n - held)) * bytes;
    for (int i = 0; i < n; ++i)
      sent[static_cast<size_t>(i)] = depart(group.rank(i), group.rank(group.right(i, held)), length, times[static_cast<size_t>(i)]);
    for (int i = 0; i < n; ++i) {
      const int from = group.left(i, held);
      const int64_t there = arrive(group.rank(from), group.rank(i), length, sent[static_cast<size_t>(from)].first_ns);
      int64_t& now = times[static_cast<size_t>(i)];
      now = std::max(std::max(now, there) + cost_.of(static_cast<double>(length)), sent[static_cast<size_t>(i)].left_ns);
    }
  }
}

// In step s of the pass member i receives what member i-1 sends: chunk i - 1 - lag - s. What it received it sends on in the next step.
void VirtualNetwork::ring_pass(const Members& group, uint64_t bytes, const Pass& pass, std::span<int64_t> times) {
  const int n = group.size;
  const size_t segment = segment_bytes();
  const auto sent_bytes = [&](int i, int step) { return group.chunk_bytes(bytes, ((i - pass.lag - step) % n + n) % n); };
  const size_t most = segments(group.chunk_bytes(bytes, 0), segment);
  if (most == 0) return;
  if (static_cast<int64_t>(most) * n * pass.steps > kMostMessages) {
    const auto duration = static_cast<int64_t>(ring_pass_ns(group, bytes, pass.steps));
    const int64_t last = *std::ranges::max_element(times);
    std::ranges::fill(times, last + duration);
    return;
  }
  // First bytes of the segments on their way to the right neighbour, by sender.
  std::vector<int64_t> coming(static_cast<size_t>(n) * most), next(coming.size()), left_ns(times.begin(), times.end());
  const auto send = [&](std::vector<int64_t>& to, int i, int step, size_t j, int64_t now) {
    const size_t length = segment_length(sent_bytes(i, step), segment, j);
    const auto d = depart(group.rank(i), group.rank(group.right(i)), length, now);
    to[static_cast<size_t>(i) * most + j] = d.first_ns;
    left_ns[static_cast<size_t>(i)] = d.left_ns;
  };
  for (int i = 0; i < n; ++i)
    for (size_t j = 0; j < segments(sent_bytes(i, 0), segment); ++j) send(coming, i, 0, j, times[static_cast<size_t>(i)]);
  for (int step = 0; step < pass.steps; ++step) {
    for (int i = 0; i < n; ++i) {
      const int left = group.left(i);
      const size_t chunk = sent_bytes(left, step);
      int64_t& now = times[static_cast<size_t>(i)];
      for (size_t j = 0; j < segments(chunk, segment); ++j) {
        const size_t length = segment_length(chunk, segment, j);
        const int64_t there = arrive(group.rank(left), group.rank(i), length, coming[static_cast<size_t>(left) * most + j]);
        now = std::max(now, there) + cost_.of(static_cast<double>(length));
        if (step + 1 < pass.steps) send(next, i, step + 1, j, now);
      }
    }
    coming.swap(next);
  }
  for (size_t i = 0; i < times.size(); ++i) times[i] = std::max(times[i], left_ns[i]);
}

// Every chunk goes straight to its owner, a segment of every peer at a time, two segments ahead.
void VirtualNetwork::ordered_reduce_scatter(const Members& group, uint64_t bytes, std::span<int64_t> times) {
  const int n = group.size;
  const auto peers = static_cast<size_t>(n - 1);
  const size_t segment = ordered_segment_bytes(bytes, peers);
  const size_t most = segments(group.chunk_bytes(bytes, 0), segment);
  if (most == 0) return;
  if (static_cast<int64_t>(most) * n * (n - 1) > kMostMessages) {
    const auto duration = static_cast<int64_t>(ordered_reduce_scatter_ns(group, bytes));
    const int64_t last = *std::ranges::max_element(times);
    std::ranges::fill(times, last + duration);
    return;
  }
  constexpr size_t kAhead = 2;
  std::vector<int64_t> left_ns(times.begin(), times.end());
  // [segment][sender][distance - 1]
  std::vector<int64_t> coming(most * static_cast<size_t>(n) * peers);
  const auto slot = [&](size_t j, int i, int d) -> int64_t& {
    return coming[(j * static_cast<size_t>(n) + static_cast<size_t>(i)) * peers + static_cast<size_t>(d - 1)];
  };
  size_t sent = 0;
  for (size_t j = 0; j < most; ++j) {
    for (; sent <= j + kAhead && sent < most; ++sent)
      for (int i = 0; i < n; ++i)
        for (int d = 1; d < n; ++d) {
          const int to = group.right(i, d);
          const size_t chunk = group.chunk_bytes(bytes, to);
          if (sent >= segments(chunk, segment)) continue;
          const auto out = depart(group.rank(i), group.rank(to), segment_length(chunk, segment, sent), times[static_cast<size_t>(i)]);
          slot(sent, i, d) = out.first_ns;
          left_ns[static_cast<size_t>(i)] = out.left_ns;
        }
    for (int i = 0; i < n; ++i) {
      const size_t chunk = group.chunk_bytes(bytes, i);
      if (j >= segments(chunk, segment)) continue;
      const size_t length = segment_length(chunk, segment, j);
      int64_t& now = times[static_cast<size_t>(i)];
      for (int d = 1; d < n; ++d) {
        const int from = group.left(i, d);
        now = std::max(now, arrive(group.rank(from), group.rank(i), length, slot(j, from, d)));
      }
      now += cost_.of(static_cast<double>(length * peers)) + static_cast<int64_t>(cost_.message_ns) * static_cast<int64_t>(peers - 1);
    }
  }
  for (size_t i = 0; i < times.size(); ++i) times[i] = std::max(times[i], left_ns[i]);
}

// As comm::ring_pass_s, over links that differ: the pass ends when the slowest link has carried a chunk for every step, and not before
// a segment has come all the way and the rest of its chunk after it.
double VirtualNetwork::ring_pass_ns(const Members& group, uint64_t bytes, int steps) const {
  const auto chunk = static_cast<double>(group.chunk_bytes(bytes, 0));
  const double segment = std::min(chunk, static_cast<double>(segment_bytes()));
  const double handling = cost_.message_ns + segment * cost_.byte_ns;
  double slowest = handling / segment;  // ns a byte
  double round = 0;
  double latest = 0;
  // Groups that stand side by side share their nodes' ports.
  const int beside = std::min(group.stride, model_.ranks() / model_.network().nodes);
  for (int i = 0; i < group.size; ++i) {
    const int from = group.rank(i), to = group.rank(group.right(i));
    const comm::LinkSpec& link = model_.link(from, to);
    const double byte_ns = 1e9 / link.bytes_per_s * (model_.port_kind(from, to) == 1 ? beside : 1);
    const double flight = 1e9 * (link.latency_s + link.jitter_s / 2) + handling;
    slowest = std::max(slowest, byte_ns);
    latest = std::max(latest, flight);
    round += segment * byte_ns + flight;
  }
  const double by_link = steps * chunk * slowest + latest;
  const double by_way = steps * round / group.size + (chunk - segment) * slowest;
  return std::max(by_link, by_way);
}

double VirtualNetwork::ordered_reduce_scatter_ns(const Members& group, uint64_t bytes) const {
  const auto chunk = static_cast<double>(group.chunk_bytes(bytes, 0));
  const double peers = group.size - 1;
  const auto& network = model_.network();
  const int per_node = model_.ranks() / network.nodes;
  const double here = std::max(1, std::min(group.size, per_node / group.stride));  // members on a node
  const double inside = (here - 1) * chunk * 1e9 / network.inside.bytes_per_s;
  const double away = group.size - here;
  const double between = here * away * std::min(group.stride, per_node) * chunk * 1e9 / network.between.bytes_per_s;
  const double latency = 1e9 * std::max(here > 1 ? network.inside.latency_s : 0, away > 0 ? network.between.latency_s : 0);
  const double handling = peers * (cost_.message_ns + chunk * cost_.byte_ns);
  return std::max({inside, between, handling}) + latency;
}

}  // namespace rz::tools
