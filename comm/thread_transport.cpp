#include "comm/thread_transport.h"

#include <algorithm>
#include <thread>

#include "comm/error.h"

namespace rz::comm {

// A parcel is a posted send (seen by both sides) or a posted receive (seen by its owner alone).
struct ThreadHub::Parcel : Transport::Request {
  enum class State : uint8_t { posted, viewed, consumed };
  std::atomic<State> state{State::posted};  // send: moved to viewed under the receiver's lock, to consumed without
  bool is_send = false;
  int peer = 0;
  size_t queue = 0;
  size_t length = 0;
  const std::byte* data = nullptr;
  Parcel* source = nullptr;  // receive: the matched send
};

struct ThreadHub::Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  bool signalled = false;
  std::vector<std::deque<Parcel*>> arrived;  // by (sender, channel)
  std::deque<ControlMessage> control;
  std::atomic<bool> frozen{false};

  void signal() {
    {
      std::lock_guard lock(mutex);
      signalled = true;
    }
    changed.notify_one();
  }
};

namespace {
size_t queue_of(int peer, Channel channel) { return static_cast<size_t>(peer) * Channel::kQueues + channel.queue(); }
}  // namespace

ThreadHub::ThreadHub(int size) {
  for (int i = 0; i < size; ++i) {
    inboxes_.push_back(std::make_unique<Inbox>());
    inboxes_.back()->arrived.resize(static_cast<size_t>(size) * Channel::kQueues);
  }
}
ThreadHub::~ThreadHub() = default;

void ThreadHub::freeze(int rank, bool frozen) {
  inboxes_[static_cast<size_t>(rank)]->frozen.store(frozen);
  inboxes_[static_cast<size_t>(rank)]->signal();
}

ThreadTransport::ThreadTransport(std::shared_ptr<ThreadHub> hub, int rank)
    : hub_(std::move(hub)), rank_(rank), expected_(static_cast<size_t>(hub_->size()) * Channel::kQueues) {}
ThreadTransport::~ThreadTransport() = default;

ThreadHub::Parcel* ThreadTransport::new_parcel() {
  if (free_.empty()) {
    parcels_.push_back(std::make_unique<ThreadHub::Parcel>());
    free_.push_back(parcels_.back().get());
  }
  ThreadHub::Parcel* p = free_.back();
  free_.pop_back();
  p->state.store(ThreadHub::Parcel::State::posted, std::memory_order_relaxed);
  p->source = nullptr;
  set_received(*p, nullptr);
  return p;
}

Transport::Request* ThreadTransport::do_post_send(int peer, Channel channel, const void* data, size_t bytes) {
  ThreadHub::Parcel* p = new_parcel();
  p->is_send = true;
  p->peer = peer;
  p->queue = queue_of(rank_, channel);
  p->length = bytes;
  p->data = static_cast<const std::byte*>(data);
  ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(peer)];
  {
    std::lock_guard lock(inbox.mutex);
    inbox.arrived[p->queue].push_back(p);
    inbox.signalled = true;
  }
  inbox.changed.notify_one();
  return p;
}

Transport::Request* ThreadTransport::do_post_receive(int peer, Channel channel, void*, size_t bytes) {
  ThreadHub::Parcel* p = new_parcel();
  p->is_send = false;
  p->peer = peer;
  p->queue = queue_of(peer, channel);
  p->length = bytes;
  expected_[p->queue].push_back(p);
  return p;
}

bool ThreadTransport::test(Request& request) {
  using State = ThreadHub::Parcel::State;
  stand_still_while_frozen();
  auto& p = static_cast<ThreadHub::Parcel&>(request);
  if (p.is_send) return p.state.load(std::memory_order_acquire) == State::consumed;
  if (p.source != nullptr) return true;
  // Only the receive whose turn it is takes a message, so that nothing is held that nobody reads.
  if (expected_[p.queue].front() != &p) return false;
  ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(rank_)];
  size_t length = 0;
  {
    std::lock_guard lock(inbox.mutex);
    auto& arrived = inbox.arrived[p.queue];
    if (arrived.empty()) return false;
    p.source = arrived.front();
    arrived.pop_front();
    length = p.source->length;
    set_received(p, p.source->data);
    p.source->state.store(State::viewed, std::memory_order_relaxed);
  }
  expected_[p.queue].pop_front();
  if (length != p.length) {
    throw CommError(fmt::format("rank {} sent {} bytes where {} were expected", p.peer, length, p.length));
  }
  return true;
}

void ThreadTransport::release(Request& request) noexcept {
  using State = ThreadHub::Parcel::State;
  auto& p = static_cast<ThreadHub::Parcel&>(request);
  if (p.is_send && p.state.load(std::memory_order_acquire) != State::consumed) {
    bool withdrawn = false;
    {
      ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(p.peer)];
      std::lock_guard lock(inbox.mutex);
      if (p.state.load(std::memory_order_relaxed) == State::posted) {
        std::erase(inbox.arrived[p.queue], &p);
        withdrawn = true;
      }
    }
    // The receiver is reading it at this moment; it never waits while it does.
    while (!withdrawn && p.state.load(std::memory_order_acquire) != State::consumed) std::this_thread::yield();
  } else if (!p.is_send && p.source != nullptr) {
    p.source->state.store(State::consumed, std::memory_order_release);  // from here the sender may reuse it
    hub_->inboxes_[static_cast<size_t>(p.peer)]->signal();
  } else if (!p.is_send) {
    std::erase(expected_[p.queue], &p);
  }
  free_.push_back(&p);
}

void ThreadTransport::do_send_control(int peer, const ControlMessage& message) {
  ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(peer)];
  {
    std::lock_guard lock(inbox.mutex);
    inbox.control.push_back(message);
    inbox.signalled = true;
  }
  inbox.changed.notify_one();
}

bool ThreadTransport::do_receive_control(ControlMessage& message) {
  stand_still_while_frozen();
  ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(rank_)];
  std::lock_guard lock(inbox.mutex);
  if (inbox.control.empty()) return false;
  message = inbox.control.front();
  inbox.control.pop_front();
  return true;
}

void ThreadTransport::pause(std::chrono::microseconds, std::chrono::microseconds limit) {
  ThreadHub::Inbox& inbox = *hub_->inboxes_[static_cast<size_t>(rank_)];
  std::unique_lock lock(inbox.mutex);
  inbox.changed.wait_for(lock, limit, [&] { return inbox.signalled; });
  inbox.signalled = false;
}

void ThreadTransport::wake() { hub_->inboxes_[static_cast<size_t>(rank_)]->signal(); }

bool ThreadTransport::is_halted() const { return hub_->inboxes_[static_cast<size_t>(rank_)]->frozen.load(std::memory_order_relaxed); }

void ThreadTransport::stand_still_while_frozen() {
  const std::atomic<bool>& frozen = hub_->inboxes_[static_cast<size_t>(rank_)]->frozen;
  while (frozen.load(std::memory_order_relaxed)) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

}  // namespace rz::comm
