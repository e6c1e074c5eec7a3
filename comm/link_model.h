// The model of a network of links, on numbers alone: emulation (emulated_transport.h) applies it to the clock, a simulator to
// virtual time. No threads, no clock, no I/O.
//
// Ranks sit on nodes, in equal blocks. Each rank has a port to the other ranks of its node; each node has one port to the other
// nodes, shared by its ranks. A port works in both directions at once (full duplex), in each on one message at a time. A message
// is what a transport is given in one piece: a segment. One of S bytes over a link of B bytes/s and latency L, posted at time t:
//
//   begin   = max(t, out.free);          out.free = begin + S/B    in the order of posting; out = the sender's port
//   first   = begin + L + jitter                                   never before an earlier message of the sender through this port
//   taken   = max(first, in.free);       in.free  = taken + S/B    in the order of first; in = the receiver's port
//   arrival = taken + S/B                                          the receiver has all of it, and not a byte before
//
// so a lone message arrives at t + S/B + L. The sender's memory is its own again at out.free. Receivers buffer without bound.
// Fingerprints take L alone and no port; control messages take no time. jitter is uniform in [0, J), a function of (seed, rank,
// port, number of the message): runs repeat.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace rz::comm {

struct LinkSpec {
  double bytes_per_s = std::numeric_limits<double>::infinity();
  double latency_s = 0;
  double jitter_s = 0;

  // S/B + L + J: the longest that a lone message may take.
  double longest_s(double bytes) const { return bytes / bytes_per_s + latency_s + jitter_s; }
  // "1Gbit,50us,jitter 5us", as parse_network() reads it.
  std::string str() const;
  bool operator==(const LinkSpec&) const = default;
};

struct NetworkSpec {
  // The directed pair from -> to has a link of its own, through the usual ports.
  struct Exception {
    int from = 0;
    int to = 0;
    LinkSpec link;
    bool operator==(const Exception&) const = default;
  };

  LinkSpec inside;   // ranks of one node
  LinkSpec between;  // ranks of two nodes
  int nodes = 1;
  std::vector<Exception> exceptions = {};
  uint64_t seed = 0;  // of the jitter

  // Throws ConfigError unless `ranks` ranks fill the nodes evenly and the exceptions are among them.
  void check_ranks(int ranks) const;
  bool operator==(const NetworkSpec&) const = default;
};

// Reads `link`, the links of a node, such as "1Gbit,50us,jitter 5us" or "1Gbit,50us;1>2=100Mbit,50us" (rank 1 to rank 2 differs);
// rates in Kbit, Mbit, Gbit, Tbit (bits), KB/s, MB/s, GB/s (bytes), powers of ten, or `unlimited`; latency and jitter, 0 if not
// given, in ns, us, ms, s. `inter_node_link`, the links between nodes, is empty where it equals `link`, without exceptions.
// Throws ConfigError beginning with the name of the parameter at fault.
NetworkSpec parse_network(std::string_view link, std::string_view inter_node_link = {}, int64_t nodes = 1);

// One port. Time is int64_t in a simulator, std::atomic<int64_t> where threads or processes share ports.
template <class Time>
struct LinkPort {
  Time out_free_ns{0};
  Time in_free_ns{0};
};

// What a rank remembers of its messages through one port.
struct LinkHistory {
  uint64_t messages = 0;
  int64_t last_first_ns = 0;
};

class LinkModel {
 public:
  // When the last byte has left the sender, and when the first is at the receiver.
  struct Departure {
    int64_t left_ns = 0;
    int64_t first_ns = 0;
  };

  // Throws ConfigError: NetworkSpec::check_ranks().
  LinkModel(NetworkSpec network, int ranks);

  const NetworkSpec& network() const { return network_; }
  int ranks() const { return ranks_; }
  int node_of(int rank) const { return rank / (ranks_ / network_.nodes); }
  const LinkSpec& link(int from, int to) const;

  // Ports are numbered: ranks' first, then nodes'.
  int ports() const { return ranks_ + network_.nodes; }
  // The port through which `rank` sends to `peer` and receives from it.
  int port_of(int rank, int peer) const { return node_of(rank) == node_of(peer) ? rank : ranks_ + node_of(rank); }
  // 0 = the port inside the node, 1 = between nodes: a rank's histories.
  int port_kind(int rank, int peer) const { return node_of(rank) == node_of(peer) ? 0 : 1; }

  int64_t transfer_ns(int from, int to, size_t bytes) const;
  int64_t latency_ns(int from, int to) const { return to_ns(link(from, to).latency_s); }

  // A message is posted: books the port of `from`.
  template <class Time>
  Departure depart(LinkPort<Time>& port, LinkHistory& history, int from, int to, size_t bytes, int64_t posted_ns) const {
    const int64_t transfer = transfer_ns(from, to, bytes);
    const int64_t begin = book(port.out_free_ns, posted_ns, transfer);
    const int64_t first = begin + latency_ns(from, to) + jitter_ns(from, to, history.messages++);
    history.last_first_ns = std::max(history.last_first_ns, first);
    return {begin + transfer, history.last_first_ns};
  }
  // Its first byte is there: books the port of `to` and returns the arrival. To be called in the order of `first_ns`.
  template <class Time>
  int64_t arrive(LinkPort<Time>& port, int from, int to, size_t bytes, int64_t first_ns) const {
    const int64_t transfer = transfer_ns(from, to, bytes);
    return book(port.in_free_ns, first_ns, transfer) + transfer;
  }

 private:
  static int64_t to_ns(double seconds);
  int64_t jitter_ns(int from, int to, uint64_t message) const;

  // Returns when a direction, free from `free` on, begins with what is ready at `ready`.
  static int64_t book(int64_t& free, int64_t ready, int64_t duration) {
    const int64_t begin = std::max(free, ready);
    free = begin + duration;
    return begin;
  }
  static int64_t book(std::atomic<int64_t>& free, int64_t ready, int64_t duration) {
    int64_t seen = free.load(std::memory_order_relaxed);
    while (!free.compare_exchange_weak(seen, std::max(seen, ready) + duration, std::memory_order_relaxed)) {
    }
    return std::max(seen, ready);
  }

  NetworkSpec network_;
  int ranks_;
};

// How long a ring pass (comm/ring.h) of `steps` steps takes at least over equal links that nobody else uses, without the time of
// additions: chunks of C bytes in segments of G <= C bytes, of which a rank passes on one while the next arrives.
//   C/B + L + (steps - 1) max(C/B, G/B + L)
double ring_pass_s(const LinkSpec& link, int steps, double chunk_bytes, double segment_bytes);

}  // namespace rz::comm
