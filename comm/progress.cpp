#include "comm/progress.h"

#include <sched.h>

#include <cstdio>
#include <cstring>
#include <future>
#include <optional>

#include "comm/error.h"
#include "comm/probe.h"
#include "comm/prompt_thread.h"
#include "comm/traffic.h"
#include "runtime/core/host.h"
#include "runtime/core/rank_context.h"

namespace rz::comm {

namespace {

using std::chrono::microseconds;

constexpr microseconds kIdlePoll{5'000};     // where control messages must be looked for
constexpr microseconds kIdleSleep{100'000};  // where they announce themselves
constexpr int64_t kMillisecond = 1'000'000;
// After a rank has left, how long an operation may stand still before the roll is called.
constexpr int64_t kLeftPatience = 100 * kMillisecond;
constexpr int64_t kCausePatience = 200 * kMillisecond;

int cores() {
  static const auto count = static_cast<int>(std::thread::hardware_concurrency());
  return count;
}

}  // namespace

Progress::Progress(std::function<std::unique_ptr<Transport>()> open, const ProgressOptions& options) : options_(options) {
  pulse_->deadline_s = options_.deadline_s;
  std::promise<void> opened;
  auto result = opened.get_future();
  thread_ = std::thread([this, &opened, context = RankContext::current(), open = std::move(open)] {
    const RankContextScope scope(context);
    try {
      transport_ = open();
      rank_ = transport_->rank();
      size_ = transport_->size();
      options_.segment_bytes = std::max(options_.segment_bytes, least_segment_bytes(size_));
      scratch_ = Storage::make(collective_memory_bytes(options_.segment_bytes, size_), Category::communication, "collective scratch");
      who_ = fmt::format("rank {}/{} host {}", rank_, size_, host_name());
      pulse_->who = who_;
      fuzz_ = Fuzz::make(options_.fuzz_seed, rank_);
      world_->rank = rank_;
      world_->members.resize(static_cast<size_t>(size_));
      for (int i = 0; i < size_; ++i) world_->members[static_cast<size_t>(i)] = i;
      groups_[world_->id] = world_;
      departures_.resize(static_cast<size_t>(size_));
    } catch (...) {
      opened.set_exception(std::current_exception());
      return;
    }
    opened.set_value();
    loop();
  });
  try {
    result.get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

Progress::~Progress() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    attention_ = true;
  }
  transport_->wake();
  thread_.join();
}

void Progress::add_group(const std::shared_ptr<Group>& group) {
  std::lock_guard lock(mutex_);
  groups_[group->id] = group;
}

Work Progress::issue(Operation operation) {
  delay(fuzz_);
  auto state = std::make_shared<Work::State>();
  state->pulse = pulse_;
  state->runner = weak_from_this();
  state->times.queued_ns = steady_now_ns();
  operation.work = state;
  operation.print.group = operation.group->id;
  operation.print.segment_bytes = options_.segment_bytes;
  if (!begin_here(operation)) {
    {
      std::lock_guard lock(mutex_);
      operation.print.sequence = ++operation.group->issued;
      state->print = operation.print;
      state->note(*operation.group);
      outstanding_.fetch_add(1);
      queue_.push_back(std::move(operation));
    }
    transport_->wake();
  }
  delay(fuzz_);
  return Work(std::move(state));
}

bool Progress::shares_memory(const Group& group) const {
  const SharedMemory* shared = ready_.load(std::memory_order_acquire);
  return shared != nullptr && shared->reaches(group);
}

// Nobody else advances shared operations now: none is outstanding, and only this thread issues.
bool Progress::begin_here(Operation& operation) {
  if (outstanding_.load() != 0 || failed_ || transport_->is_halted() || operation.print.kind == CollectiveKind::probe) return false;
  if (!shares_memory(*operation.group)) return false;
  if (!operation.at_once && !SharedOperation::is_short(*ready_.load(), operation.print, operation.group->size())) return false;
  const std::lock_guard engine(engine_);
  {
    std::lock_guard lock(mutex_);
    if (stop_) return false;
    operation.print.sequence = ++operation.group->issued;
    operation.work->print = operation.print;
    operation.work->note(*operation.group);
    outstanding_.fetch_add(1);
    begun_ = std::make_unique<Operation>(std::move(operation));
    has_begun_ = true;
  }
  // It was queued before this thread saw that nothing is outstanding: what was may have ended in between, and traces are in order.
  begun_->work->times.started_ns = std::max(begun_->work->times.queued_ns, last_done_ns_);
  begin_shared(*begun_);
  return true;
}

void Progress::help(const Work::State& work) {
  constexpr int64_t kLongestNs = 300'000;  // without a step forward
  constexpr int64_t kLateNs = 100'000;
  if (!has_begun_) return;
  std::unique_lock engine(engine_);
  if (begun_ == nullptr) return;
  if (begun_->work.get() == &work) {
    // Most end without a look at the clock.
    int64_t begun = 0, yielded = 0;
    // More ranks than cores take turns: each poll keeps another from coming, and a yield that comes back late has let another do its part.
    const bool takes_turns = begun_->group->size() > cores();
    const bool is_crowded = !takes_turns && crowded_until_ns_ != 0 && steady_now_ns() < crowded_until_ns_;
    const int spins = takes_turns ? 0 : 100;
    try {
      for (int polls = 0; !failed_ && !transport_->is_halted();) {
        const SharedOperation::Outcome outcome = begun_->shared->advance();
        if (outcome == SharedOperation::Outcome::done) {
          Work::State::Moved moved = count_shared(*begun_);
          // Adding the shortest data takes less than a look at the clock.
          if (begun_->print.count * size_bytes(begun_->print.dtype) <= Call::kPayloadBytes) moved.done_ns = moved.last_byte_ns;
          if (!is_crowded) ++calm_;  // else the last to come finds all the others there, and need not yield
          const auto operation = std::move(begun_);
          finish(*operation, moved, {});
          has_begun_ = false;  // from here the thread may run what comes next, which the trace must show as later
          return;
        }
        const bool has_moved = outcome == SharedOperation::Outcome::moved;
        if (!has_moved && polls++ < spins) continue;
        if (has_moved || begun == 0) begun = yielded = steady_now_ns();
        if (is_crowded || (!takes_turns && yielded < crowded_until_ns_) || yielded - begun > kLongestNs) break;
        if (has_moved) {
          polls = 0;
          continue;
        }
        sched_yield();
        const int64_t before = std::exchange(yielded, steady_now_ns());
        if (!takes_turns && yielded - before > kLateNs) was_late(yielded);
      }
    } catch (const SharedOperation::Disagreement&) {  // the thread says so
    }
  }
  engine.unlock();
  transport_->wake();
}

// A yield that comes back late has given the core to somebody who computes. Where that is the rule, this thread does not compete for a
// while: the progress thread, which is prompt, takes over. That takes long, too, so one late yield among many operations is no reason.
void Progress::was_late(int64_t now_ns) {
  constexpr int kMany = 200;  // hand-overs take as long as a time slice
  constexpr int64_t kShortestNs = 1'000'000;
  constexpr int64_t kLongestNs = 50'000'000;
  crowded_ns_ = std::exchange(calm_, 0) >= kMany ? 0 : std::clamp(2 * crowded_ns_, kShortestNs, kLongestNs);
  crowded_until_ns_ = crowded_ns_ == 0 ? 0 : now_ns + crowded_ns_;
}

void Progress::hurry() {
  if (has_begun_) transport_->wake();
}

void Progress::abort(std::string text) {
  {
    std::lock_guard lock(mutex_);
    if (wanted_abort_.empty()) wanted_abort_ = std::move(text);
    attention_ = true;
  }
  transport_->wake();
}

std::string Progress::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void Progress::loop() {
  std::optional<PromptThread> prompt(std::in_place);
  meet();
  for (;;) {
    poll();
    Operation operation;
    {
      std::unique_lock lock(mutex_);
      if (stop_) break;
      if (has_begun_) {  // nothing may overtake it
        lock.unlock();
        std::unique_lock engine(engine_);
        if (begun_ == nullptr) continue;
        operation = std::move(*std::exchange(begun_, nullptr));
        has_begun_ = false;
        engine.unlock();
        run_operation(operation);
        continue;
      }
      if (queue_.empty()) {
        const bool leaving = leave_ != nullptr;
        lock.unlock();
        if (leaving) {
          run_leave();
        } else {
          transport_->pause(kIdlePoll, kIdleSleep);
        }
        continue;
      }
      operation = std::move(queue_.front());
      queue_.pop_front();
    }
    run_operation(operation);
  }
  prompt.reset();  // closing may spin, as may what went before
  const bool has_left = departures_[static_cast<size_t>(rank_)].reason != LeaveReason::running;
  if (!clean_) fail(fmt::format("{}: this rank's communicator was destroyed", who_), !has_left);
  if (shared_ && !clean_) shared_->close();
  drain_queue();
  transport_->close(clean_);
}

// Finds out who shares memory. An operation of no group's sequence.
void Progress::meet() {
  if (size_ == 1 || options_.emulates_links) return;
  Operation meeting;
  meeting.group = world_;
  meeting.print.kind = CollectiveKind::probe;
  meeting.print.set_name("start");
  meeting.work = std::make_shared<Work::State>();
  meeting.work->pulse = pulse_;
  meeting.work->print = meeting.print;
  outstanding_.fetch_add(1);
  run_operation(meeting);
  if (shared_ && !shared_->refusal().empty()) {
    std::fprintf(stderr, "ringzero: %s: ranks of this machine exchange messages, for memory cannot be shared: %s\n", who_.c_str(),
                 shared_->refusal().c_str());
  }
}

void Progress::begin_shared(Operation& operation) {
  operation.shared = std::make_unique<SharedOperation>(*shared_, *operation.group, operation.print, operation.data, operation.own);
  operation.shared->begin();
  // Meanwhile what has been told is on its way.
  const Fingerprint& f = operation.print;
  const Group& group = *operation.group;
  operation.traffic = traffic_of({f.kind, f.count, f.dtype, f.order, group.rank, group.size(), f.root, options_.segment_bytes,
                                  kRingWindow * options_.segment_bytes});
}

// Counts what messages would have moved.
Work::State::Moved Progress::count_shared(const Operation& operation) {
  const Fingerprint& f = operation.print;
  transport_->count_as(f.kind, operation.traffic, {sizeof f, sizeof f, 1, 1});
  return {operation.shared->first_byte_ns(), operation.shared->last_byte_ns(), operation.traffic.sent_bytes};
}

void Progress::finish(const Operation& operation, const Work::State::Moved& moved, std::string error) {
  operation.work->finish(moved, std::move(error));
  last_done_ns_ = operation.work->times.done_ns;
  // Last: who sees that none is outstanding may begin the next one, which must be later in the trace, and the only one to write there.
  outstanding_.fetch_sub(1);
}

void Progress::run_operation(Operation& operation) {
  delay(fuzz_);
  if (!operation.shared) operation.work->start();
  operation.work->take_up();
  current_ = &operation;
  current_started_ns_ = last_progress_ns_ = steady_now_ns();
  roll_.end();
  std::string error;
  Work::State::Moved moved;
  try {
    if (failed_) throw CommError(failure());
    if (operation.print.kind != CollectiveKind::probe && shared_ && shared_->reaches(*operation.group)) {
      run_shared(operation);
      moved = count_shared(operation);
    } else {
      run_messages(operation, moved);
    }
  } catch (const std::exception& e) {
    // Whatever it was (a peer's message of the wrong length, no memory), this rank cannot keep its part of the bargain.
    // A rank that knows the cause, such as different counts, is given a moment to say so.
    for (const int64_t now = steady_now_ns(); !failed_ && steady_now_ns() - now < kCausePatience;) {
      poll();
      transport_->pause(microseconds(1000), microseconds(10'000));
    }
    if (!failed_) fail(fmt::format("{}: {}", operation.work->what(), e.what()), true);
    error = failure();
    if (shared_) shared_->close();
  }
  current_ = nullptr;
  delay(fuzz_);
  finish(operation, moved, std::move(error));
}

void Progress::run_shared(Operation& operation) {
  if (!operation.shared) begin_shared(operation);
  Waiting waiting(*transport_);
  for (;;) {
    SharedOperation::Outcome outcome{};
    try {
      outcome = operation.shared->advance();
    } catch (const SharedOperation::Disagreement& other) {
      disagree(operation, other.peer, other.theirs);
    }
    if (outcome == SharedOperation::Outcome::done) return progressed();
    if (outcome == SharedOperation::Outcome::moved) progressed();
    tick();
    if (outcome == SharedOperation::Outcome::moved) {
      waiting.restart();
    } else {
      waiting.pass(false);
    }
  }
}

void Progress::run_messages(Operation& operation, Work::State::Moved& moved) {
  const Fingerprint& f = operation.print;
  const Scratch scratch{scratch_->data(), kRingWindow * options_.segment_bytes, options_.segment_bytes};
  const Reduction reduction{f.dtype, f.op, f.order};
  Wire wire(*transport_, *operation.group, f.kind, *this);
  if (f.sequence == 0) {
    transport_->count_nothing(true);
    shared_ = std::make_unique<SharedMemory>(wire, options_.intra_node, options_.segment_bytes, scratch_);
    transport_->count_nothing(false);
    ready_.store(shared_.get(), std::memory_order_release);
    return;
  }
  if (wire.size() > 1) compare_fingerprints(operation, wire);
  switch (f.kind) {
    case CollectiveKind::all_reduce:
      all_reduce(wire, scratch, operation.data, f.count, reduction);
      break;
    case CollectiveKind::reduce_scatter:
      reduce_scatter(wire, scratch, operation.data, operation.own, f.count, reduction);
      break;
    case CollectiveKind::all_gather:
      all_gather(wire, scratch, operation.own, operation.data, f.count, f.dtype);
      break;
    case CollectiveKind::broadcast:
      broadcast(wire, scratch, operation.data, f.count, f.dtype, f.root);
      break;
    case CollectiveKind::barrier:
      barrier(wire);
      break;
    case CollectiveKind::probe:
      probe(wire, scratch, *reinterpret_cast<ProbeResult*>(operation.data));
      break;
  }
  moved = {wire.first_byte_ns(), wire.last_byte_ns(), wire.sent_bytes()};
}

void Progress::compare_fingerprints(const Operation& operation, Wire& wire) {
  const Fingerprint& mine = operation.print;
  Fingerprint landing;
  Posted send = wire.send_header(wire.right(), mine);
  Posted receive = wire.receive_header(wire.left(), landing);
  wire.wait(receive);
  Fingerprint theirs;
  std::memcpy(&theirs, receive.bytes(), sizeof theirs);
  receive.release();
  if (!(mine == theirs)) disagree(operation, operation.group->members[static_cast<size_t>(wire.left())], theirs);
  wire.wait(send);
}

void Progress::disagree(const Operation& operation, int peer, const Fingerprint& theirs) {
  const Fingerprint& mine = operation.print;
  fail(fmt::format("{}: ranks disagree: rank {} called {}, rank {} called {} ({})", operation.work->what(), rank_, describe(mine), peer,
                   describe(theirs), difference(mine, theirs)),
       true);
  throw CommError(failure());
}

void Progress::progressed() {
  last_progress_ns_ = steady_now_ns();
  roll_.end();
}

void Progress::tick() {
  poll();
  if (failed_) throw CommError("failed");  // the text is taken from failure()
  check_patience();
}

void Progress::poll() {
  pulse_->beats.fetch_add(1, std::memory_order_relaxed);
  ControlMessage message;
  while (transport_->receive_control(message)) handle(message);
  if (attention_.load(std::memory_order_acquire)) {
    std::string wanted;
    bool stop = false;
    {
      std::lock_guard lock(mutex_);
      wanted.swap(wanted_abort_);
      stop = stop_;
      attention_ = stop;
    }
    if (!wanted.empty()) fail(std::move(wanted), true);
    if (stop && current_ != nullptr) fail(fmt::format("{}: given up: this rank's communicator was destroyed", current_->work->what()), true);
  }
  if (options_.watch_sigterm) terminate_if_asked();
}

void Progress::handle(const ControlMessage& m) {
  if (m.from < 0 || m.from >= size_) return;
  switch (m.type) {
    case ControlMessage::Type::abort: {
      if (failed_) return;
      const std::string own = current_ != nullptr ? current_->work->what() : who_;
      const double elapsed = current_ != nullptr ? to_s(steady_now_ns() - current_started_ns_) : 0;
      fail(current_ != nullptr ? fmt::format("{}: ended after {:.2f} s by rank {}: {}", own, elapsed, m.from, m.get_text())
                               : fmt::format("{}: ended by rank {}: {}", own, m.from, m.get_text()),
           false);
      break;
    }
    case ControlMessage::Type::roll_call:
      answer(m);
      break;
    case ControlMessage::Type::present:
      roll_.answer(m);
      break;
    case ControlMessage::Type::left:
      departures_[static_cast<size_t>(m.from)] = {m.reason, std::string(m.get_text())};
      someone_left_ = true;
      break;
  }
}

void Progress::answer(const ControlMessage& question) {
  ControlMessage m;
  m.type = ControlMessage::Type::present;
  m.from = rank_;
  m.group = question.group;
  m.sequence = question.sequence;
  {
    std::lock_guard lock(mutex_);
    const auto found = groups_.find(question.group);
    if (found != groups_.end()) m.issued = found->second->issued;
  }
  m.running = current_ != nullptr;
  if (current_ != nullptr) m.now = current_->print;
  m.reason = departures_[static_cast<size_t>(rank_)].reason;
  transport_->send_control(question.from, m);
}

void Progress::call_roll(int64_t now_ns) {
  roll_.begin(size_, now_ns);
  ControlMessage m;
  m.type = ControlMessage::Type::roll_call;
  if (current_ != nullptr) {
    m.group = current_->print.group;
    m.sequence = current_->print.sequence;
  }
  tell_all(m);
}

// The last part of the deadline (at most a second) is for the roll call; sooner when a rank has left.
void Progress::check_patience() {
  const int64_t now = steady_now_ns();
  // A process that was stopped has not waited meanwhile.
  if (last_look_ns_ > last_progress_ns_ && now - last_look_ns_ > 1000 * kMillisecond) last_progress_ns_ += now - last_look_ns_;
  last_look_ns_ = now;
  const int64_t still = now - last_progress_ns_;
  const int64_t deadline = to_ns(options_.deadline_s);
  const int64_t answer_time = std::min<int64_t>(deadline / 4, 1000 * kMillisecond);
  if (!roll_.is_open()) {
    if (still > deadline - answer_time || (someone_left_ && still > std::min(kLeftPatience, deadline / 2))) call_roll(now);
    return;
  }
  const Fingerprint& mine = current_->print;
  const bool hopeless = someone_left_ && roll_.someone_left_without(mine, *current_->group, departures_, now);
  if (still <= deadline && !hopeless) {
    // An early roll call that found nothing wrong is made again.
    if (now - roll_.asked_ns() > answer_time && still < deadline - answer_time) roll_.end();
    return;
  }
  const std::string sentence = roll_.sentence(mine, *current_->group, departures_);
  fail(fmt::format("{}: no progress for {:.2f} s ({:.2f} s since its start): {}", current_->work->what(), to_s(still),
                   to_s(now - current_started_ns_), sentence),
       true);
  throw CommError("failed");
}

void Progress::fail(std::string text, bool tell_others) {
  if (failed_) return;
  failed_ = true;
  if (tell_others) {
    ControlMessage m;
    m.type = ControlMessage::Type::abort;
    m.set_text(text);
    tell_all(m);
  }
  std::lock_guard lock(mutex_);
  failure_ = std::move(text);
}

void Progress::tell_all(const ControlMessage& message) {
  ControlMessage m = message;
  m.from = rank_;
  for (int r = 0; r < size_; ++r) {
    if (r != rank_) transport_->send_control(r, m);
  }
}

void Progress::drain_queue() {
  std::deque<Operation> rest;
  {
    const std::lock_guard engine(engine_);
    std::lock_guard lock(mutex_);
    rest.swap(queue_);
    if (has_begun_) rest.push_front(std::move(*std::exchange(begun_, nullptr)));
    has_begun_ = false;
  }
  for (Operation& o : rest) finish(o, {}, failure());
}

}  // namespace rz::comm
