// Progress: one thread per rank that runs all of the rank's collectives, in order of issue, and alone touches the transport.
//
// 1. Operations enter through issue() with their sequence number, assigned under the lock: order of issue is order of running.
// 2. Between polls of any wait the thread answers control messages, so a rank whose main thread computes is known to live.
// 3. The first failure (seen here, told by a peer, or raised by abort()) is final: it goes to every rank, ends the running
//    operation and fails all later ones with the same text.
// 4. Among ranks that share memory operations need no messages (comm/shared_operation.h). A short one, or one that the caller waits for
//    at once, is begun by the caller, within issue(), where nothing precedes it, and ended by whoever waits for it, if that is soon: it
//    costs no switch of threads. Otherwise, and whenever it wakes, the thread takes it over.
// 5. Idle, the thread sleeps; the destructor ends it without waiting for peers.
// Thread safety: public functions may be called by any thread; fields below `thread only` belong to the progress thread.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "comm/fuzz.h"
#include "comm/ring.h"
#include "comm/roll_call.h"
#include "comm/shared_operation.h"
#include "comm/transport.h"
#include "comm/work_state.h"
#include "runtime/core/storage.h"

namespace rz::comm {

struct ProgressOptions {
  double deadline_s = 60;
  size_t segment_bytes = 256 * 1024;
  bool watch_sigterm = false;  // see request_termination()
  IntraNode intra_node = IntraNode::automatic;
  bool emulates_links = false;  // over which ranks exchange messages, wherever they are
  uint64_t fuzz_seed = 0;      // above 0: random delays at every hand-over (comm/fuzz.h)
};

struct Farewell {
  bool alike = false;  // every rank left, with the same reason and text
  std::string other;   // "rank 2/4: text" of one that left with another error
};

class Progress final : private Patience, public std::enable_shared_from_this<Progress> {
 public:
  struct Operation {
    Fingerprint print;
    std::shared_ptr<Group> group;
    std::byte* data = nullptr;  // the full buffer
    std::byte* own = nullptr;   // reduce_scatter, all_gather: the chunk
    bool at_once = false;       // CollectiveOptions::at_once
    std::shared_ptr<Work::State> work;
    std::unique_ptr<SharedOperation> shared;  // from when it is begun, where the group shares memory
    WireCount traffic;                        // the same: what messages would move
  };

  // `open` makes the transport, on the progress thread; what it throws comes out here. Memory that the thread holds is
  // counted to the calling thread's rank.
  Progress(std::function<std::unique_ptr<Transport>()> open, const ProgressOptions& options);
  ~Progress() override;

  int rank() const { return rank_; }
  int size() const { return size_; }
  double deadline_s() const { return options_.deadline_s; }
  size_t scratch_bytes() const { return scratch_->size_bytes(); }
  WireStats wire_stats() const { return transport_->stats(); }
  const std::shared_ptr<Group>& world() const { return world_; }

  // Queues an operation. Fills in sequence and segment size. Fails through the Work, never here.
  Work issue(Operation operation);
  // A thread that waits for `work` does it itself, if it was begun by a caller and all ranks come to it soon.
  void help(const Work::State& work);
  // Somebody looks whether an operation is done, without waiting: the progress thread shall do it.
  void hurry();
  // Does this group exchange data through shared memory? True only once all ranks have met, as they have when an operation is done.
  bool shares_memory(const Group& group) const;
  // Makes a group known, so that roll calls about it can be answered.
  void add_group(const std::shared_ptr<Group>& group);

  // Fails the job on every rank, with `text`.
  void abort(std::string text);
  // The text of the failure; empty while all is well.
  std::string failure() const;

  // This rank's main thread is done. Tells the others and waits until they are done too, for at most `limit_s` (0 = for as
  // long as all of them answer and the job has not failed). COLLECTIVE.
  Farewell leave(LeaveReason reason, std::string text, double limit_s);
  // After leave() of all: the transport may wait for peers while closing.
  void close_cleanly() { clean_ = true; }

  // Async-signal-safe: threads with watch_sigterm print what they wait for and who no longer answers, and exit with 143.
  static void request_termination();

  // "rank 2/4 host h"
  const std::string& who() const { return who_; }
  // Has somebody who waited for it seen the thread stand still, beyond its deadline? Then nothing that is joined with it ends.
  bool hangs() const;

 private:
  void loop();
  void meet();
  bool begin_here(Operation& operation);
  void begin_shared(Operation& operation);
  void run_operation(Operation& operation);
  void run_shared(Operation& operation);
  void run_messages(Operation& operation, Work::State::Moved& moved);
  Work::State::Moved count_shared(const Operation& operation);
  void was_late(int64_t now_ns);
  void finish(const Operation& operation, const Work::State::Moved& moved, std::string error);
  [[noreturn]] void disagree(const Operation& operation, int peer, const Fingerprint& theirs);
  void compare_fingerprints(const Operation& operation, Wire& wire);
  void run_leave();

  void tick() override;
  void progressed() override;
  void poll();
  void handle(const ControlMessage& message);
  void answer(const ControlMessage& question);
  void call_roll(int64_t now_ns);
  void check_patience();
  void terminate_if_asked();

  void fail(std::string text, bool tell_others);
  void tell_all(const ControlMessage& message);
  void drain_queue();

  ProgressOptions options_;
  std::shared_ptr<Storage> scratch_;
  std::shared_ptr<Pulse> pulse_ = std::make_shared<Pulse>();
  std::unique_ptr<Transport> transport_;
  std::shared_ptr<Group> world_ = std::make_shared<Group>();
  int rank_ = 0;
  int size_ = 1;
  std::string who_;
  std::shared_ptr<Fuzz> fuzz_;
  std::atomic<bool> clean_{false};

  mutable std::mutex mutex_;
  std::deque<Operation> queue_;                        // guarded by mutex_
  std::map<uint32_t, std::shared_ptr<Group>> groups_;  // guarded by mutex_, as is Group::issued
  std::string failure_;                                // guarded by mutex_
  std::string wanted_abort_;                           // guarded by mutex_: abort() of another thread
  std::atomic<bool> attention_{false};                 // stop or wanted_abort_ is set
  bool stop_ = false;                                  // guarded by mutex_

  struct Leave {
    LeaveReason reason = LeaveReason::finished;
    std::string text;
    double limit_s = 0;
    bool done = false;
    Farewell farewell;
  };
  std::condition_variable left_;
  std::shared_ptr<Leave> leave_;  // guarded by mutex_

  // thread only
  const Operation* current_ = nullptr;
  int64_t current_started_ns_ = 0;
  int64_t last_progress_ns_ = 0;
  int64_t last_look_ns_ = 0;  // at the time that has passed since
  RollCall roll_;
  std::vector<Departure> departures_;
  bool someone_left_ = false;
  std::atomic<bool> failed_{false};  // written by the thread alone

  std::unique_ptr<SharedMemory> shared_;  // made by the thread; used by it, or under engine_ while begun_ is there
  std::atomic<SharedMemory*> ready_{nullptr};
  std::atomic<int> outstanding_{0};    // operations issued and not done
  std::mutex engine_;                  // taken before mutex_
  int64_t last_done_ns_ = 0;           // of the last operation that ended; read by who sees that none is outstanding
  std::unique_ptr<Operation> begun_;   // guarded by engine_: by a caller, the oldest of all
  int64_t crowded_until_ns_ = 0;       // guarded by engine_, as are the next two; see help()
  int64_t crowded_ns_ = 0;
  int calm_ = 0;                       // operations ended since a yield was late
  std::atomic<bool> has_begun_{false};  // set under mutex_

  std::thread thread_;
};

}  // namespace rz::comm
