// Transport: moves bytes between two ranks. It knows nothing of rings, groups, order of operations or deadlines.
//
// 1. Requests never block: post, then test() until it says done, then release(). One thread (the progress thread) calls
//    everything except wake() and stats().
// 2. Between two ranks, messages of one channel arrive in the order in which they were posted; sends match receives in order.
// 3. A received message is read through bytes(): its landing place, or the sender's own memory where that can be reached.
//    The sender's request completes when the receiver has released its own (or the bytes were copied away).
// 4. Releasing an unfinished request gives it up; afterwards nothing touches its memory.
// 5. Control messages are small, buffered, and never wait for anybody.
// Another kind of wire (shared memory, TCP, a decorator that emulates a slow link) is another subclass.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>

#include "comm/control.h"
#include "comm/types.h"
#include "comm/wire_stats.h"

namespace rz::comm {

// What a message is counted as, and which of its peer's queues it waits in.
struct Channel {
  bool header = false;
  CollectiveKind kind = CollectiveKind::barrier;  // counted under; all payload shares one queue
  bool is_stamp = false;                          // what a decorator sends beside a message, in a queue of its own

  static constexpr Channel fingerprint() { return {true, CollectiveKind::barrier, false}; }
  static constexpr Channel payload(CollectiveKind kind) { return {false, kind, false}; }
  constexpr Channel stamp() const { return {header, kind, true}; }

  // Messages of two ranks that share a number wait in one queue.
  static constexpr size_t kQueues = 4;
  constexpr size_t queue() const { return (header ? 1u : 0u) + (is_stamp ? 2u : 0u); }
};

class Transport {
 public:
  // One posted send or receive; made by a transport, owned by it, valid until release().
  class Request {
   public:
    // A completed receive's bytes.
    const std::byte* bytes() const { return bytes_; }

   protected:
    friend class Transport;
    const std::byte* bytes_ = nullptr;
    size_t length_ = 0;
  };

  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  Request* post_send(int peer, Channel channel, const void* data, size_t bytes) {
    count(channel, bytes, true);
    return do_post_send(peer, channel, data, bytes);
  }
  // `landing` must have room for `bytes`; whether it is used is the transport's choice.
  Request* post_receive(int peer, Channel channel, void* landing, size_t bytes) {
    count(channel, bytes, false);
    return do_post_receive(peer, channel, landing, bytes);
  }
  // Done? Throws CommError when the peer's message has another length.
  virtual bool test(Request& request) = 0;
  virtual void release(Request& request) noexcept = 0;

  void send_control(int peer, const ControlMessage& message) {
    add(control_.sent_bytes, sizeof message), add(control_.sent_messages, 1);
    do_send_control(peer, message);
  }
  bool receive_control(ControlMessage& message) {
    if (!do_receive_control(message)) return false;
    add(control_.received_bytes, sizeof message), add(control_.received_messages, 1);
    return true;
  }

  // Sleeps until something may have changed: `limit` at most where changes announce themselves, `poll` where they must be
  // looked for. A wake() before or during the call ends it.
  virtual void pause(std::chrono::microseconds poll, std::chrono::microseconds limit) = 0;
  // The request tested last will not be done within microseconds: pause instead of polling.
  virtual bool is_far_off() const { return false; }
  // Any thread: ends the current or the next pause().
  virtual void wake() = 0;

  // The last call. `clean`: all ranks are well and do the same; otherwise nothing may wait for a peer.
  virtual void close(bool clean) = 0;

  // What moves past the transport, through memory that ranks share, counts as if it had been posted here.
  void count_as(CollectiveKind kind, const WireCount& payload, const WireCount& header) {
    add(payload_[static_cast<size_t>(kind)], payload);
    add(header_, header);
  }
  // What is posted while `on` is of no collective.
  void count_nothing(bool on) { counts_ = !on; }

  // Any thread: this rank stands still (tests).
  virtual bool is_halted() const { return false; }

  // Any thread.
  WireStats stats() const;

 protected:
  virtual Request* do_post_send(int peer, Channel channel, const void* data, size_t bytes) = 0;
  virtual Request* do_post_receive(int peer, Channel channel, void* landing, size_t bytes) = 0;
  virtual void do_send_control(int peer, const ControlMessage& message) = 0;
  virtual bool do_receive_control(ControlMessage& message) = 0;

  static void set_received(Request& request, const std::byte* bytes) { request.bytes_ = bytes; }

 private:
  struct Counter {
    std::atomic<uint64_t> sent_bytes{0}, received_bytes{0}, sent_messages{0}, received_messages{0};
  };
  // Written by the progress thread, or by who runs in its place, so a plain load and store is an increment.
  static void add(std::atomic<uint64_t>& counter, uint64_t n) {
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  static void add(Counter& counter, const WireCount& more) {
    add(counter.sent_bytes, more.sent_bytes), add(counter.received_bytes, more.received_bytes);
    add(counter.sent_messages, more.sent_messages), add(counter.received_messages, more.received_messages);
  }
  void count(Channel channel, size_t bytes, bool sent);

  bool counts_ = true;

  std::array<Counter, kCollectiveKinds> payload_;
  Counter header_;
  Counter control_;
};

}  // namespace rz::comm
