// How a rank ends: leave-taking, and SIGTERM. Part of Progress; see progress.h.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "comm/progress.h"
#include "comm/work_state.h"

namespace rz::comm {

namespace {

using std::chrono::microseconds;

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kTerminationRollCall = 300'000'000;

std::atomic<bool> g_termination{false};

}  // namespace

void Progress::request_termination() { g_termination.store(true); }

Farewell Progress::leave(LeaveReason reason, std::string text, double limit_s) {
  auto leave = std::make_shared<Leave>(Leave{reason, std::move(text), limit_s, false, {}});
  std::unique_lock lock(mutex_);
  leave_ = leave;
  transport_->wake();
  for (PulseWatch watch(*pulse_); !left_.wait_for(lock, PulseWatch::kSlice, [&] { return leave->done; });) {
    if (watch.sees_a_hang()) return {.alike = false, .other = who_ + ": its progress thread hangs"};
  }
  return leave->farewell;
}

bool Progress::hangs() const { return pulse_->hangs; }

void Progress::run_leave() {
  std::shared_ptr<Leave> leave;
  {
    std::lock_guard lock(mutex_);
    leave = leave_;
  }
  ControlMessage m;
  m.type = ControlMessage::Type::left;
  m.reason = leave->reason;
  m.set_text(leave->text);
  tell_all(m);
  departures_[static_cast<size_t>(rank_)] = {m.reason, std::string(m.get_text())};  // cut to the same length as the others'

  const auto gone = [this](const Departure& d) { return d.reason != LeaveReason::running; };
  const int64_t begun = steady_now_ns();
  int64_t heard = begun;
  const int64_t deadline = to_ns(options_.deadline_s);
  roll_.end();
  for (poll(); !std::all_of(departures_.begin(), departures_.end(), gone); poll()) {
    const int64_t now = steady_now_ns();
    if (leave->limit_s > 0 ? now - begun > to_ns(leave->limit_s) : failed_.load()) break;
    if (leave->reason == LeaveReason::config_error && failed_) break;
    if (leave->reason == LeaveReason::failed && g_termination.load(std::memory_order_relaxed)) break;
    // Without a limit, only ranks that answer are waited for.
    if (leave->limit_s == 0 && roll_.is_open() && now - roll_.asked_ns() > std::min<int64_t>(deadline, kSecond)) {
      std::vector<int> silent;
      for (int r = 0; r < size_; ++r) {
        if (r != rank_ && !gone(departures_[static_cast<size_t>(r)]) && !roll_.answered(r)) silent.push_back(r);
      }
      if (!silent.empty()) {
        fail(fmt::format("{}: waiting for the others to finish: no answer from {}: dead or stopped, {:.2f} s", who_, rank_list(silent),
                         to_s(now - begun)),
             true);
        break;
      }
      roll_.end();
      heard = now;
    } else if (leave->limit_s == 0 && !roll_.is_open() && now - heard > deadline / 2) {
      call_roll(now);
    }
    transport_->pause(microseconds(1000), microseconds(20'000));
  }
  roll_.end();
  const Departure& mine = departures_[static_cast<size_t>(rank_)];
  Farewell farewell;
  farewell.alike = !failed_;
  for (int r = 0; r < size_; ++r) {
    const Departure& d = departures_[static_cast<size_t>(r)];
    if (d.reason == mine.reason && d.text == mine.text) continue;
    farewell.alike = false;
    if (gone(d) && d.reason != LeaveReason::finished && farewell.other.empty())
      farewell.other = fmt::format("rank {}/{}: {}", r, size_, d.text);
  }
  {
    std::lock_guard lock(mutex_);
    leave->farewell = std::move(farewell);
    leave->done = true;
    leave_.reset();
  }
  left_.notify_all();
}

void Progress::terminate_if_asked() {
  if (!g_termination.load(std::memory_order_relaxed)) return;
  const LeaveReason left = departures_[static_cast<size_t>(rank_)].reason;
  if (left == LeaveReason::failed || left == LeaveReason::config_error) return;  // the main thread reports and exits
  const int64_t asked = steady_now_ns();
  if (!failed_) call_roll(asked);
  ControlMessage m;
  while (!failed_ && steady_now_ns() - asked < kTerminationRollCall) {
    while (transport_->receive_control(m)) {
      if (m.type != ControlMessage::Type::abort) handle(m);
    }
    transport_->pause(microseconds(1000), microseconds(1000));
  }
  std::string line;
  if (failed_) {
    line = failure();
  } else if (current_ != nullptr) {
    line = fmt::format("{}: SIGTERM after waiting {:.2f} s: {}", current_->work->what(), to_s(asked - current_started_ns_),
                       roll_.sentence(current_->print, *current_->group, departures_));
  } else {
    line = fmt::format("{}: SIGTERM while no collective was running: {}", who_, roll_.missing(rank_));
  }
  // The rest of the process may hang: nothing but this line and the exit.
  std::fprintf(stderr, "ringzero: %s\n", line.c_str());
  std::fflush(stderr);
  std::_Exit(143);
}

}  // namespace rz::comm
