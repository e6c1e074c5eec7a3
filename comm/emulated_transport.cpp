#include "comm/emulated_transport.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "comm/error.h"
#include "comm/wire.h"
#include "comm/work.h"
#include "runtime/core/random.h"

namespace rz::comm {

namespace {

using std::chrono::microseconds;

// Where changes must be looked for, how long a sleep may be: control messages, and the transport below, want attention.
constexpr microseconds kLongestPoll{1'000};
// What is nearer is not worth a sleep.
constexpr int64_t kNearNs = 20'000;

using SharedPort = LinkPort<std::atomic<int64_t>>;
static_assert(std::atomic<int64_t>::is_always_lock_free, "ports are shared by processes");

// Ports in memory that all ranks of a machine map; empty pages are ports that are free.
class SharedPorts {
 public:
  SharedPorts(int fd, int ports) : bytes_(static_cast<size_t>(ports) * sizeof(SharedPort)) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory_ == MAP_FAILED) throw CommError(fmt::format("cannot map the ports of emulated links: {}", std::strerror(errno)));
  }
  ~SharedPorts() { ::munmap(memory_, bytes_); }
  SharedPorts(const SharedPorts&) = delete;
  SharedPorts& operator=(const SharedPorts&) = delete;

  SharedPort& operator[](int port) { return static_cast<SharedPort*>(memory_)[port]; }

 private:
  size_t bytes_;
  void* memory_;
};

struct FileDescriptor {
  int value = -1;
  ~FileDescriptor() {
    if (value >= 0) ::close(value);
  }
};

// Differs between machines, and between starts of one: where it agrees, so do steady clocks.
uint64_t machine_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  if (id.empty()) throw CommError("cannot read /proc/sys/kernel/random/boot_id, which emulated links need");
  return stable_hash(id);
}

// Rank 0 makes the memory and tells the others where it is; all learn whether everybody has it.
class Handshake {
 public:
  Handshake(Transport& transport, double deadline_s)
      : transport_(transport), deadline_ns_(steady_now_ns() + static_cast<int64_t>(deadline_s * 1e9)) {}

  // Null where ranks are on several machines, on all ranks alike.
  std::unique_ptr<SharedPorts> run(int ports) {
    std::unique_ptr<SharedPorts> mine;
    Offer offer;
    FileDescriptor memory;
    if (transport_.rank() == 0) {
      memory.value = ::memfd_create("ringzero links", MFD_CLOEXEC);
      if (memory.value < 0 || ::ftruncate(memory.value, static_cast<off_t>(static_cast<size_t>(ports) * sizeof(SharedPort))) != 0) {
        throw CommError(fmt::format("cannot make memory for emulated links: {}", std::strerror(errno)));
      }
      offer = {machine_id(), ::getpid(), memory.value};
      mine = std::make_unique<SharedPorts>(memory.value, ports);
    }
    from_first(offer);
    if (transport_.rank() != 0 && offer.machine == machine_id()) {
      // Ranks as threads find their own process there.
      memory.value = ::open(fmt::format("/proc/{}/fd/{}", offer.process, offer.file).c_str(), O_RDWR | O_CLOEXEC);
      if (memory.value >= 0) mine = std::make_unique<SharedPorts>(memory.value, ports);
    }
    int32_t everybody = mine != nullptr ? 1 : 0;
    to_first(everybody);
    from_first(everybody);
    return everybody != 0 ? std::move(mine) : nullptr;
  }

 private:
  struct Offer {
    uint64_t machine = 0;
    int32_t process = 0;
    int32_t file = -1;
  };
  static constexpr Channel kChannel = Channel::payload(CollectiveKind::barrier);

  // Rank 0's value to all.
  template <class T>
  void from_first(T& value) {
    if (transport_.rank() != 0) return receive(0, value);
    std::vector<Posted> sends;
    for (int r = 1; r < transport_.size(); ++r) sends.emplace_back(transport_, transport_.post_send(r, kChannel, &value, sizeof value));
    for (Posted& send : sends) wait(send);
  }
  // The least of all values, at rank 0.
  void to_first(int32_t& value) {
    if (transport_.rank() != 0) {
      Posted send(transport_, transport_.post_send(0, kChannel, &value, sizeof value));
      return wait(send);
    }
    for (int r = 1; r < transport_.size(); ++r) {
      int32_t theirs = 0;
      receive(r, theirs);
      value = std::min(value, theirs);
    }
  }
  template <class T>
  void receive(int from, T& value) {
    T landing;
    Posted posted(transport_, transport_.post_receive(from, kChannel, &landing, sizeof landing));
    wait(posted);
    std::memcpy(&value, posted.bytes(), sizeof value);
  }
  void wait(Posted& posted) {
    while (!posted.test()) {
      if (steady_now_ns() > deadline_ns_) throw CommError("setting up emulated links: a rank does not answer");
      transport_.pause(microseconds(100), microseconds(1000));
    }
  }

  Transport& transport_;
  int64_t deadline_ns_;
};

struct Flight : Transport::Request {
  bool is_send = false;
  bool header = false;
  int peer = 0;
  size_t length = 0;
  Transport::Request* stamp = nullptr;  // of the transport below, like `message`
  Transport::Request* message = nullptr;
  int64_t landing = 0;    // receive: where the stamp may arrive
  int64_t first_ns = 0;   // the stamp; of a receive 0 until it is there
  int64_t ready_ns = 0;   // send: the last byte has left; receive: it has arrived, 0 until that is known
  int64_t flight_ns = 0;  // receive: the least time from posting to arrival
};

class EmulatedTransport final : public Transport {
 public:
  EmulatedTransport(std::unique_ptr<Transport> inner, LinkModel model, std::unique_ptr<SharedPorts> ports)
      : inner_(std::move(inner)), model_(std::move(model)), ports_(std::move(ports)), rank_(inner_->rank()) {}

  int rank() const override { return rank_; }
  int size() const override { return inner_->size(); }

  bool test(Request& request) override {
    auto& f = static_cast<Flight&>(request);
    const int64_t now = steady_now_ns();
    look_for_stamps();
    take(now);
    ready_ns_ = f.ready_ns;
    unseen_ns_ = 0;
    if (!f.is_send && f.ready_ns == 0) {
      // Not before the next look plus a flight, or not before all of it could be here.
      if (f.first_ns == 0) unseen_ns_ = f.flight_ns;
      ready_ns_ = f.first_ns == 0 ? 0 : f.first_ns + model_.transfer_ns(f.peer, rank_, f.length);
      return false;
    }
    if (now < f.ready_ns) return false;
    ready_ns_ = 0;
    if (f.is_send && !inner_->test(*f.stamp)) return false;
    if (!inner_->test(*f.message)) return false;
    if (!f.is_send) set_received(f, f.message->bytes());
    return true;
  }

  bool is_far_off() const override { return unseen_ns_ > 2 * kNearNs || ready_ns_ - steady_now_ns() > kNearNs; }

  void release(Request& request) noexcept override {
    auto& f = static_cast<Flight&>(request);
    std::erase(unstamped_, &f);
    std::erase(coming_, &f);
    if (f.stamp != nullptr) inner_->release(*f.stamp);
    inner_->release(*f.message);
    free_.push_back(&f);
  }

  void pause(microseconds poll, microseconds limit) override {
    const int64_t ready = std::exchange(ready_ns_, 0);
    const int64_t unseen = std::exchange(unseen_ns_, 0);
    if (ready != 0) {
      const int64_t left = ready - steady_now_ns();
      if (left <= 0) return;
      const microseconds sleep((left + 999) / 1000);
      return inner_->pause(std::min(sleep, kLongestPoll), std::min(sleep, limit));
    }
    // A stamp that is found half a flight late is found in time.
    if (unseen != 0) poll = std::max(poll, std::min(microseconds(unseen / 2000), kLongestPoll));
    inner_->pause(poll, limit);
  }
  void wake() override { inner_->wake(); }
  void close(bool clean) override { inner_->close(clean); }

 private:
  Request* do_post_send(int peer, Channel channel, const void* data, size_t bytes) override {
    const int64_t now = steady_now_ns();
    Flight& f = new_flight(true, peer, channel, bytes);
    if (channel.header) {
      f.ready_ns = now;
      f.first_ns = now + model_.latency_ns(rank_, peer);
    } else {
      LinkHistory& history = histories_[model_.port_kind(rank_, peer)];
      const auto departure = model_.depart((*ports_)[model_.port_of(rank_, peer)], history, rank_, peer, bytes, now);
      f.ready_ns = departure.left_ns;
      f.first_ns = departure.first_ns;
    }
    f.stamp = inner_->post_send(peer, channel.stamp(), &f.first_ns, sizeof f.first_ns);
    f.message = inner_->post_send(peer, channel, data, bytes);
    return &f;
  }

  Request* do_post_receive(int peer, Channel channel, void* landing, size_t bytes) override {
    Flight& f = new_flight(false, peer, channel, bytes);
    f.flight_ns = model_.latency_ns(peer, rank_) + (f.header ? 0 : model_.transfer_ns(peer, rank_, bytes));
    f.stamp = inner_->post_receive(peer, channel.stamp(), &f.landing, sizeof f.landing);
    f.message = inner_->post_receive(peer, channel, landing, bytes);
    unstamped_.push_back(&f);
    return &f;
  }

  void do_send_control(int peer, const ControlMessage& message) override { inner_->send_control(peer, message); }
  bool do_receive_control(ControlMessage& message) override { return inner_->receive_control(message); }

  Flight& new_flight(bool is_send, int peer, Channel channel, size_t bytes) {
    if (free_.empty()) {
      flights_.push_back(std::make_unique<Flight>());
      free_.push_back(flights_.back().get());
    }
    Flight& f = *free_.back();
    free_.pop_back();
    f = Flight();
    f.is_send = is_send;
    f.header = channel.header;
    f.peer = peer;
    f.length = bytes;
    return f;
  }

  void look_for_stamps() {
    std::erase_if(unstamped_, [this](Flight* f) {
      if (!inner_->test(*f->stamp)) return false;
      std::memcpy(&f->first_ns, f->stamp->bytes(), sizeof f->first_ns);
      inner_->release(*std::exchange(f->stamp, nullptr));
      if (f->header) {
        f->ready_ns = f->first_ns;
        return true;
      }
      const auto later = [](const Flight* a, const Flight* b) {
        return a->first_ns != b->first_ns ? a->first_ns < b->first_ns : a->peer < b->peer;
      };
      coming_.insert(std::upper_bound(coming_.begin(), coming_.end(), f, later), f);
      return true;
    });
  }

  // Books this rank's ports for what has begun to arrive.
  void take(int64_t now) {
    size_t begun = 0;
    for (; begun < coming_.size() && coming_[begun]->first_ns <= now; ++begun) {
      Flight& f = *coming_[begun];
      f.ready_ns = model_.arrive((*ports_)[model_.port_of(rank_, f.peer)], f.peer, rank_, f.length, f.first_ns);
    }
    coming_.erase(coming_.begin(), coming_.begin() + static_cast<long>(begun));
  }

  std::unique_ptr<Transport> inner_;
  LinkModel model_;
  std::unique_ptr<SharedPorts> ports_;
  int rank_;
  LinkHistory histories_[2];
  std::vector<std::unique_ptr<Flight>> flights_;  // all ever made; reused
  std::vector<Flight*> free_;
  std::vector<Flight*> unstamped_;  // receives, in the order of posting
  std::vector<Flight*> coming_;     // receives with a stamp, in the order of first_ns
  // Of the request tested last: when it can be done, or how far away it is at least if its stamp is not here; 0 = no more known.
  int64_t ready_ns_ = 0;
  int64_t unseen_ns_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_emulated_transport(std::unique_ptr<Transport> inner, const NetworkSpec& network, double deadline_s) {
  try {
    LinkModel model(network, inner->size());
    auto ports = Handshake(*inner, deadline_s).run(model.ports());
    RZ_CONFIG_CHECK(ports != nullptr, "link: emulated links need all ranks on one machine, whose clock they share");
    return std::make_unique<EmulatedTransport>(std::move(inner), std::move(model), std::move(ports));
  } catch (const ConfigError&) {
    inner->close(true);
    throw;
  }
}

}  // namespace rz::comm
