#include "comm/mpi_transport.h"

// mpi.h's C++ bindings are dead and would need a library of their own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <vector>

#include "comm/error.h"
#include "comm/work.h"

namespace rz::comm {

namespace {

constexpr const char* kUnaskedBytes = "270336";  // the default segment and Open MPI's header
constexpr int kControlTag = 1;
constexpr int kFirstTag = 2;  // of Channel's queues
// How long giving up all requests may take; a peer that is gone never completes them.
constexpr int64_t kGiveUpNs = 50'000'000;
constexpr int64_t kLingerNs = 150'000'000;

void check(int rc, const char* call) {
  if (rc == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(rc, text, &length);
  throw CommError(fmt::format("{}: {}", call, text));
}

struct MpiRequest : Transport::Request {
  bool is_send = false;
  int peer = 0;
  size_t length = 0;
  size_t done = 0;                  // pieces complete, from the front
  std::vector<MPI_Request> pieces;  // no longer than the message limit each
  std::vector<size_t> lengths;
};

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(size_t limit) : limit_(limit) {
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized) throw CommError("MPI is initialized already: run_ranks can use it once per process");
    // Over TCP, Open MPI asks the receiver before it sends a message above this limit, and the question waits behind all payload
    // posted before it: rings of segments then reach half the rate. So segments go unasked, unless the user has set a limit.
    setenv("OMPI_MCA_btl_tcp_eager_limit", kUnaskedBytes, 0);
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    check(MPI_Comm_dup(MPI_COMM_WORLD, &data_), "MPI_Comm_dup");
    check(MPI_Comm_dup(MPI_COMM_WORLD, &control_), "MPI_Comm_dup");
    for (const MPI_Comm c : {MPI_COMM_WORLD, data_, control_}) MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
    MPI_Comm_rank(data_, &rank_);
    MPI_Comm_size(data_, &size_);
    listen();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  bool test(Request& request) override {
    auto& r = static_cast<MpiRequest&>(request);
    for (; r.done < r.pieces.size(); ++r.done) {
      int flag = 0;
      MPI_Status status;
      const int rc = MPI_Test(&r.pieces[r.done], &flag, &status);
      int error_class = MPI_SUCCESS;
      if (rc != MPI_SUCCESS) MPI_Error_class(rc, &error_class);
      if (error_class == MPI_ERR_TRUNCATE) throw wrong_length(r, "more");
      check(rc, r.is_send ? "MPI_Isend" : "MPI_Irecv");
      if (!flag) return false;
      int received = 0;
      if (!r.is_send) MPI_Get_count(&status, MPI_BYTE, &received);
      if (!r.is_send && static_cast<size_t>(received) != r.lengths[r.done]) throw wrong_length(r, "fewer");
    }
    return true;
  }

  void release(Request& request) noexcept override {
    auto& r = static_cast<MpiRequest&>(request);
    for (; r.done < r.pieces.size(); ++r.done) give_up(r.pieces[r.done], !r.is_send);
    free_.push_back(&r);
  }

  void pause(std::chrono::microseconds poll, std::chrono::microseconds) override {
    std::unique_lock lock(mutex_);
    woken_.wait_for(lock, poll, [&] { return is_woken_; });
    is_woken_ = false;
  }
  void wake() override {
    {
      std::lock_guard lock(mutex_);
      is_woken_ = true;
    }
    woken_.notify_one();
  }

  void close(bool clean) override {
    if (!clean) return linger();
    MPI_Cancel(&listening_);
    MPI_Wait(&listening_, MPI_STATUS_IGNORE);
    for (Letter& letter : letters_) MPI_Wait(&letter.request, MPI_STATUS_IGNORE);
    MPI_Comm_free(&data_);
    MPI_Comm_free(&control_);
    MPI_Finalize();
  }

 private:
  struct Letter {
    std::unique_ptr<ControlMessage> message;
    MPI_Request request;
  };

  static CommError wrong_length(const MpiRequest& r, const char* relation) {
    return CommError(fmt::format("rank {} sent {} than the {} bytes expected", r.peer, relation, r.length));
  }

  MpiRequest* new_request(bool is_send, int peer, size_t bytes) {
    if (free_.empty()) {
      requests_.push_back(std::make_unique<MpiRequest>());
      free_.push_back(requests_.back().get());
    }
    MpiRequest* r = free_.back();
    free_.pop_back();
    r->is_send = is_send;
    r->peer = peer;
    r->length = bytes;
    r->done = 0;
    r->pieces.clear();
    r->lengths.clear();
    return r;
  }

  // Calls post(offset, length, request) for every piece; an empty message is one empty piece.
  template <class Post>
  void for_pieces(MpiRequest& r, Post post) {
    size_t offset = 0;
    do {
      const size_t length = std::min(limit_, r.length - offset);
      MPI_Request request = MPI_REQUEST_NULL;
      check(post(offset, static_cast<int>(length), &request), r.is_send ? "MPI_Isend" : "MPI_Irecv");
      r.pieces.push_back(request);
      r.lengths.push_back(length);
      offset += length;
    } while (offset < r.length);
  }

  Request* do_post_send(int peer, Channel channel, const void* data, size_t bytes) override {
    MpiRequest* r = new_request(true, peer, bytes);
    const int tag = kFirstTag + static_cast<int>(channel.queue());
    for_pieces(*r, [&](size_t offset, int length, MPI_Request* request) {
      return MPI_Isend(static_cast<const std::byte*>(data) + offset, length, MPI_BYTE, peer, tag, data_, request);
    });
    return r;
  }

  Request* do_post_receive(int peer, Channel channel, void* landing, size_t bytes) override {
    MpiRequest* r = new_request(false, peer, bytes);
    const int tag = kFirstTag + static_cast<int>(channel.queue());
    for_pieces(*r, [&](size_t offset, int length, MPI_Request* request) {
      return MPI_Irecv(static_cast<std::byte*>(landing) + offset, length, MPI_BYTE, peer, tag, data_, request);
    });
    set_received(*r, static_cast<const std::byte*>(landing));
    return r;
  }

  void do_send_control(int peer, const ControlMessage& message) override {
    Letter letter{std::make_unique<ControlMessage>(message), MPI_REQUEST_NULL};
    if (MPI_Isend(letter.message.get(), sizeof message, MPI_BYTE, peer, kControlTag, control_, &letter.request) != MPI_SUCCESS) return;
    letters_.push_back(std::move(letter));
  }

  bool do_receive_control(ControlMessage& message) override {
    for (auto it = letters_.begin(); it != letters_.end();) {
      int sent = 0;
      MPI_Test(&it->request, &sent, MPI_STATUS_IGNORE);
      it = sent ? letters_.erase(it) : std::next(it);
    }
    int arrived = 0;
    if (MPI_Test(&listening_, &arrived, MPI_STATUS_IGNORE) != MPI_SUCCESS || !arrived) return false;
    message = *heard_;
    listen();
    return true;
  }

  void listen() {
    check(MPI_Irecv(heard_.get(), sizeof(ControlMessage), MPI_BYTE, MPI_ANY_SOURCE, kControlTag, control_, &listening_), "MPI_Irecv");
  }

  // Only after a failure. A receive can be cancelled; a send cannot, but either may be about to complete. What does not
  // complete in time is left to the end of the process, which is near.
  void give_up(MPI_Request& request, bool is_receive) noexcept {
    if (request == MPI_REQUEST_NULL) return;
    if (is_receive) MPI_Cancel(&request);
    if (give_up_until_ns_ == 0) give_up_until_ns_ = steady_now_ns() + kGiveUpNs;
    int done = 0;
    do {
      if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
    } while (!done && steady_now_ns() < give_up_until_ns_);
  }

  // What this rank said last must reach peers that it never spoke to before: they open its shared memory by name, which
  // mpirun removes when the process ends.
  void linger() {
    ControlMessage unheard;
    for (const int64_t begun = steady_now_ns(); size_ > 1 && steady_now_ns() - begun < kLingerNs;) {
      do_receive_control(unheard);
      pause(std::chrono::microseconds(1000), {});
    }
  }

  size_t limit_;
  int rank_ = 0;
  int size_ = 1;
  MPI_Comm data_ = MPI_COMM_NULL;
  MPI_Comm control_ = MPI_COMM_NULL;
  std::vector<std::unique_ptr<MpiRequest>> requests_;  // all ever made; reused
  std::vector<MpiRequest*> free_;
  std::deque<Letter> letters_;  // control messages on their way
  std::unique_ptr<ControlMessage> heard_ = std::make_unique<ControlMessage>();
  MPI_Request listening_ = MPI_REQUEST_NULL;
  int64_t give_up_until_ns_ = 0;  // 0: nothing was given up
  std::mutex mutex_;
  std::condition_variable woken_;
  bool is_woken_ = false;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(size_t message_limit_bytes) { return std::make_unique<MpiTransport>(message_limit_bytes); }

}  // namespace rz::comm
