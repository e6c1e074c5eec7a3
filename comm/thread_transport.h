// ThreadTransport: ranks are threads of one process. Nothing is copied on the way: a receiver reads the sender's memory
// until it releases the message. Used by tests, and by runs without mpirun.
// A ThreadHub is shared by the ranks; ThreadHub::freeze() stops one of them the way SIGSTOP stops a process, for tests.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/transport.h"

namespace rz::comm {

class ThreadTransport;

class ThreadHub {
 public:
  explicit ThreadHub(int size);
  ~ThreadHub();
  int size() const { return static_cast<int>(inboxes_.size()); }

  // Rank `rank`'s progress thread stands still (true) or goes on (false). Any thread.
  void freeze(int rank, bool frozen);

 private:
  friend class ThreadTransport;
  struct Parcel;
  struct Inbox;
  std::vector<std::unique_ptr<Inbox>> inboxes_;
};

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(std::shared_ptr<ThreadHub> hub, int rank);
  ~ThreadTransport() override;

  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  bool test(Request& request) override;
  void release(Request& request) noexcept override;
  void pause(std::chrono::microseconds poll, std::chrono::microseconds limit) override;
  void wake() override;
  bool is_halted() const override;
  void close(bool) override {}

 private:
  Request* do_post_send(int peer, Channel channel, const void* data, size_t bytes) override;
  Request* do_post_receive(int peer, Channel channel, void* landing, size_t bytes) override;
  void do_send_control(int peer, const ControlMessage& message) override;
  bool do_receive_control(ControlMessage& message) override;
  void stand_still_while_frozen();
  ThreadHub::Parcel* new_parcel();

  std::shared_ptr<ThreadHub> hub_;
  int rank_;
  std::vector<std::unique_ptr<ThreadHub::Parcel>> parcels_;  // all ever made; reused
  std::vector<ThreadHub::Parcel*> free_;
  std::vector<std::deque<ThreadHub::Parcel*>> expected_;  // receives posted and not yet matched, by (peer, channel)
};

}  // namespace rz::comm
