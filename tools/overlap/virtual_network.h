// How long collectives take over a network of links (comm/link_model.h), in virtual time: the algorithms of comm/ring.cpp walked
// message by message where that is cheap, else closed forms. A message costs its receiver's progress thread time as well.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/link_model.h"
#include "tools/overlap/step_script.h"

namespace rz::tools {

// What receiving a message of S bytes (taking note of it, adding or copying it) takes: message_ns + S byte_ns.
struct MessageCost {
  double message_ns = 0;
  double byte_ns = 0;
  int64_t of(double bytes) const { return static_cast<int64_t>(message_ns + bytes * byte_ns); }
};

// What a member of its group receives in an operation: fingerprint and segments, and their bytes. Chunks taken as equal.
struct Received {
  double messages = 0;
  double bytes = 0;
};
Received received(const ScriptOperation& operation);

class VirtualNetwork {
 public:
  // ConfigError: NetworkSpec::check_ranks().
  VirtualNetwork(comm::NetworkSpec network, int ranks, MessageCost cost = {});

  const comm::NetworkSpec& network() const { return model_.network(); }

  // The group's ranks, first + i * operation.group_stride, take the operation up at `begin_ns`; `done_ns` gets when each is done. The
  // ports stay booked: operations of a rank are to be run in their order.
  void run(const ScriptOperation& operation, int first, std::span<const int64_t> begin_ns, std::span<int64_t> done_ns);

  // Above so many messages in an operation its time comes from a closed form: all links alike are exact, hierarchies nearly so.
  static constexpr int64_t kMostMessages = 200'000;

 private:
  struct Members;
  struct Pass;
  void ring_pass(const Members& group, uint64_t bytes, const Pass& pass, std::span<int64_t> times);
  void gather(const Members& group, uint64_t bytes, std::span<int64_t> times);
  void ordered_reduce_scatter(const Members& group, uint64_t bytes, std::span<int64_t> times);
  double ring_pass_ns(const Members& group, uint64_t bytes, int steps) const;
  double ordered_reduce_scatter_ns(const Members& group, uint64_t bytes) const;
  comm::LinkModel::Departure depart(int from, int to, size_t bytes, int64_t now);
  int64_t arrive(int from, int to, size_t bytes, int64_t first_ns);

  comm::LinkModel model_;
  MessageCost cost_;
  std::vector<comm::LinkPort<int64_t>> ports_;
  std::vector<comm::LinkHistory> histories_;  // two a rank
};

}  // namespace rz::tools
