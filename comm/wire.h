// Wire: a collective algorithm's view of the transport: ranks numbered within the group, messages counted under one kind of
// collective, waits that give up when the job fails or a deadline passes. One Wire lives for one operation, on the progress
// thread; what it posted and did not finish is given up when the Posted handles go.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "comm/transport.h"

namespace rz::comm {

// Ranks that communicate together: `members[i]` is the world rank of group rank i.
struct Group {
  uint32_t id = 0;  // 0 = the whole job; the same on every member
  int rank = 0;     // this rank's place
  std::vector<int> members{0};
  uint64_t issued = 0;  // operations issued by this rank, guarded by Progress
  uint32_t splits = 0;  // how often it was split, main thread only

  int size() const { return static_cast<int>(members.size()); }
};

// Consulted between polls of a wait; throws CommError when waiting on has become pointless.
class Patience {
 public:
  virtual ~Patience() = default;
  virtual void tick() = 0;        // nothing yet
  virtual void progressed() = 0;  // something arrived or left: deadlines start anew
};

// A posted send or receive, given up by the destructor unless finished.
// Declare sends before receives: a rank that gives up lets go of what it reads before it takes back what others may read,
// else ranks that give up together would wait for each other.
class Posted {
 public:
  Posted() = default;
  Posted(Transport& transport, Transport::Request* request) : transport_(&transport), request_(request) {}
  Posted(Posted&& o) noexcept : transport_(o.transport_), request_(std::exchange(o.request_, nullptr)) {}
  Posted& operator=(Posted&& o) noexcept {
    if (this != &o) {
      release();
      transport_ = o.transport_;
      request_ = std::exchange(o.request_, nullptr);
    }
    return *this;
  }
  ~Posted() { release(); }

  bool test() { return request_ == nullptr || transport_->test(*request_); }
  const std::byte* bytes() const { return request_->bytes(); }
  void release() noexcept {
    if (request_ != nullptr) transport_->release(*std::exchange(request_, nullptr));
  }

 private:
  Transport* transport_ = nullptr;
  Transport::Request* request_ = nullptr;
};

// How a wait passes its time: polling, then yielding, then in naps that grow.
class Waiting {
 public:
  explicit Waiting(Transport& transport) : transport_(transport) {}
  // Between two looks. `announces`: what is waited for ends the transport's pause.
  void pass(bool announces);
  void restart() { polls_ = 0, nap_ = kFirstNap; }

 private:
  static constexpr int kSpins = 16;
  static constexpr int kYields = 48;
  static constexpr std::chrono::microseconds kFirstNap{8};

  Transport& transport_;
  int polls_ = 0;
  int patience_ = kSpins + kYields;
  std::chrono::microseconds nap_ = kFirstNap;
};

class Wire {
 public:
  Wire(Transport& transport, const Group& group, CollectiveKind kind, Patience& patience)
      : transport_(transport), group_(group), channel_(Channel::payload(kind)), patience_(patience) {}

  int rank() const { return group_.rank; }
  int size() const { return group_.size(); }
  // The ring neighbour `distance` places to the right.
  int right(int distance = 1) const { return (rank() + distance) % size(); }
  int left(int distance = 1) const { return (rank() - distance % size() + size()) % size(); }

  Posted send(int to, const void* data, size_t bytes) {
    sent_bytes_ += bytes;
    return post_send(to, channel_, data, bytes);
  }
  Posted receive(int from, void* landing, size_t bytes) { return post_receive(from, channel_, landing, bytes); }
  Posted send_header(int to, const Fingerprint& f) { return post_send(to, Channel::fingerprint(), &f, sizeof f); }
  Posted receive_header(int from, Fingerprint& f) { return post_receive(from, Channel::fingerprint(), &f, sizeof f); }

  // Blocks until `posted` is done.
  void wait(Posted& posted);
  // Waits for a payload receive and marks the times of the first and the last.
  const std::byte* wait_bytes(Posted& posted);

  int64_t first_byte_ns() const { return first_byte_ns_; }
  int64_t last_byte_ns() const { return last_byte_ns_; }
  // Payload posted so far.
  uint64_t sent_bytes() const { return sent_bytes_; }

 private:
  Posted post_send(int to, Channel c, const void* data, size_t bytes) {
    return {transport_, transport_.post_send(group_.members[static_cast<size_t>(to)], c, data, bytes)};
  }
  Posted post_receive(int from, Channel c, void* landing, size_t bytes) {
    return {transport_, transport_.post_receive(group_.members[static_cast<size_t>(from)], c, landing, bytes)};
  }

  Transport& transport_;
  const Group& group_;
  Channel channel_;
  Patience& patience_;
  int64_t first_byte_ns_ = 0;
  int64_t last_byte_ns_ = 0;
  uint64_t sent_bytes_ = 0;
};

}  // namespace rz::comm
