#include "comm/probe.h"

#include <array>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <string>

#include "comm/work.h"

namespace rz::comm {

namespace {

constexpr int kRounds = 8;

// Equal on ranks whose steady clocks are one: those of one start of one machine.
uint64_t clock_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return std::hash<std::string>{}(boot);
}

struct Reading {
  int64_t now_ns = 0;
  uint64_t clock = 0;
};

Reading receive_reading(Wire& wire, int from) {
  Reading landing;
  Posted in = wire.receive(from, &landing, sizeof landing);
  wire.wait(in);
  Reading reading;
  std::memcpy(&reading, in.bytes(), sizeof reading);
  return reading;
}

void send_reading(Wire& wire, int to, const Reading& reading) {
  Posted out = wire.send(to, &reading, sizeof reading);
  wire.wait(out);
}

// Rank 0 answers one rank after the other.
void find_offset(Wire& wire, ProbeResult& result) {
  const uint64_t clock = clock_identity();
  if (wire.rank() == 0) {
    for (int r = 1; r < wire.size(); ++r) {
      for (int round = 0; round < kRounds; ++round) {
        receive_reading(wire, r);
        send_reading(wire, r, {steady_now_ns(), clock});
      }
    }
    return;
  }
  int64_t quickest = std::numeric_limits<int64_t>::max();
  for (int round = 0; round < kRounds; ++round) {
    const int64_t asked = steady_now_ns();
    send_reading(wire, 0, {asked, clock});
    const Reading theirs = receive_reading(wire, 0);
    const int64_t took = steady_now_ns() - asked;
    if (took >= quickest) continue;
    quickest = took;
    const bool same = theirs.clock == clock;
    result.clock_offset_ns = same ? 0 : theirs.now_ns - (asked + took / 2);
    result.clock_error_ns = same ? 0 : (took + 1) / 2;
  }
}

// The shortest time that `bytes` took from the left neighbour, all ranks sending.
int64_t one_way_ns(Wire& wire, const Scratch& scratch, size_t bytes, int64_t offset_ns) {
  std::byte* out = scratch.data;
  std::byte* landing = scratch.data + bytes;
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int round = 0; round < kRounds / 2; ++round) {
    barrier(wire);
    const int64_t left_at = steady_now_ns() + offset_ns;
    std::memcpy(out, &left_at, sizeof left_at);
    Posted send = wire.send(wire.right(), out, bytes);
    Posted receive = wire.receive(wire.left(), landing, bytes);
    wire.wait(receive);
    const int64_t now = steady_now_ns() + offset_ns;
    int64_t theirs = 0;
    std::memcpy(&theirs, receive.bytes(), sizeof theirs);
    receive.release();
    shortest = std::min(shortest, now - theirs);
    wire.wait(send);
  }
  return std::max<int64_t>(shortest, 1);
}

}  // namespace

void probe(Wire& wire, const Scratch& scratch, ProbeResult& result) {
  result = {};
  if (wire.size() == 1) return;
  find_offset(wire, result);
  const size_t bytes = scratch.bytes / 2;
  std::memset(scratch.data, 0, scratch.bytes);
  result.latency_ns = one_way_ns(wire, scratch, sizeof(int64_t), result.clock_offset_ns);
  const int64_t long_ns = one_way_ns(wire, scratch, bytes, result.clock_offset_ns);
  result.bytes_per_s = static_cast<double>(bytes) * 1e9 / static_cast<double>(std::max<int64_t>(long_ns - result.latency_ns, 1));
}

}  // namespace rz::comm
